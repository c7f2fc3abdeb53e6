"""`relayctl runs`: list runs, each with its state and the reason for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import ENDED, UNENDED, RelayClient, shorten_name
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.commands.options import Format, Labels, Quiet, parse_labels, parse_seconds
from relayctl.commands.runner import run_command
from relayctl.output.format import format_age, format_pairs, format_table
from relayctl.output.runs import format_hosts, format_metrics, format_progress, format_state
from relayctl.output.serialize import Output, format_list
from relayctl.output.terminal import Terminal, say

_REFRESH = 2.0  #: seconds between two listings of `runs -w`
_LAST_ENDED = 10  #: ended runs that are listed unless more are asked for


@dataclass(frozen=True, slots=True)
class RunSelection:
    """Which runs to list."""

    all: bool
    limit: int | None
    states: Sequence[str]
    labels: Sequence[str]
    since: str | None

    @property
    def narrows(self) -> bool:
        """Whether runs may be missing from the list because they do not match."""
        return bool(self.states or self.labels or self.since)


def list_runs(
    context: typer.Context,
    all: Annotated[bool, typer.Option("-a", "--all", help="List also all runs that ended long ago.")] = False,
    limit: Annotated[
        int | None, typer.Option("-n", min=1, metavar="N", help="List at most N runs.", show_default=False)
    ] = None,
    states: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="List only runs in this state.")
    ] = None,
    labels: Labels = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="List only runs submitted in the last, e.g. 2h.", show_default=False),
    ] = None,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="List again every two seconds.")] = False,
    output: Format = Output.TABLE,
    quiet: Quiet = False,
) -> None:
    """List runs: those that have not ended, and the last that have."""
    selection = RunSelection(all, limit, states or (), labels or (), since)
    run_command(context, partial(_list, selection, Output.NAME if quiet else output, watch))


async def _list(
    selection: RunSelection, output: Output, watch: bool, client: RelayClient, terminal: Terminal
) -> ExitCode:
    while True:
        runs = await _find(client, selection)
        table = format_runs_table(runs, datetime.now(UTC), wide=output is Output.WIDE, width=terminal.width)
        text = format_list("runs", runs, output, table if runs else _describe_none(selection))
        if watch and terminal.interactive:
            print("\x1b[H\x1b[2J", end="")
        if text:
            say(text)
        if not watch:
            return ExitCode.OK
        await asyncio.sleep(_REFRESH)


def _describe_none(selection: RunSelection) -> str:
    return "no runs match" if selection.narrows else "no runs yet; submit one with: relayctl submit FILE"


async def _find(client: RelayClient, selection: RunSelection) -> list[pb.Run]:
    states, labels = [_parse_state(name) for name in selection.states], parse_labels(selection.labels)
    seconds, limit = parse_seconds(selection.since), selection.limit
    after = None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)
    query = partial(client.list_runs, labels=labels, created_after=after)
    if selection.all or states:
        return await query(states=states, limit=limit)
    unended = await query(states=UNENDED, limit=limit)
    ended = await query(states=ENDED, limit=limit or _LAST_ENDED)
    return sorted([*unended, *ended], key=lambda run: run.create_time.ToNanoseconds(), reverse=True)[:limit]


def _parse_state(name: str) -> pb.Run.State.ValueType:
    known = [state.lower() for state in pb.Run.State.keys()[1:]]
    if name.lower() not in known:
        raise UsageMistake(f'there is no state "{name}"; known: {", ".join(known)}')
    return pb.Run.State.Value(name.upper())


def format_runs_table(runs: Sequence[pb.Run], now: datetime, *, wide: bool = False, width: int | None = None) -> str:
    """Return the table of runs, one a row; the state with its reason is last, so that only it is cut."""
    headers = ["NAME", "PROGRESS", "HOST", "TRY", "AGE"]
    extra = ["PRIORITY", "LABELS", "METRICS"] if wide else []
    rows = []
    for run in runs:
        cells = [
            shorten_name(run.name),
            format_progress(run.progress),
            format_hosts(run.attempt),
            str(run.attempts or ""),
        ]
        cells.append(format_age(run.create_time, now))
        if wide:
            cells += [str(run.priority), format_pairs(run.labels), format_metrics(run.progress.metrics)]
        rows.append([*cells, format_state(run)])
    return format_table([*headers, *extra, "STATE"], rows, width)

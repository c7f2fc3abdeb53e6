"""The commands that only look: runs, show, why, logs, metrics, samples, agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import ENDED, UNENDED, RelayClient, short
from relayctl.commands.exits import ExitCode
from relayctl.output import curves as plots
from relayctl.output import logs as log_lines
from relayctl.output import views
from relayctl.output.serialize import Output, listing, plain, single
from relayctl.output.terminal import Terminal, note, say
from runfile import parse_duration

_REFRESH = 2.0  #: seconds between two looks of `runs -w`
_LAST_ENDED = 10


class UsageMistake(Exception):
    """The command line asks for something that makes no sense; the message says what would."""


def machine(output: Output) -> bool:
    return output in (Output.JSON, Output.JSONL, Output.YAML)


def shown(kind: str, messages: Sequence[Any], output: Output, table: str) -> str:
    """A list in the form that was asked for."""
    if machine(output):
        return listing(kind, [plain(message) for message in messages], output)
    if output is Output.NAME:
        return "\n".join(short(message.name) for message in messages)
    return table


def say_all(text: str) -> None:
    """A list; one of names or lines that is empty is no line at all."""
    if text:
        say(text)


async def runs(
    client: RelayClient,
    terminal: Terminal,
    output: Output,
    *,
    every: bool,
    limit: int | None,
    states: Sequence[str],
    labels: Sequence[str],
    since: str | None,
    watch: bool,
) -> ExitCode:
    """The unfinished runs and the last finished, or those asked for."""
    query = _query(every, limit, states, labels, since)
    while True:
        found = await _find(client, **query)
        now = datetime.now(UTC)
        table = views.runs_table(found, now, wide=output is Output.WIDE, width=terminal.width)
        if watch and terminal.interactive:
            print("\x1b[H\x1b[2J", end="")
        say_all(shown("runs", found, output, table if found else _no_runs(query)))
        if not watch:
            return ExitCode.OK
        await asyncio.sleep(_REFRESH)


def _no_runs(query: Mapping[str, Any]) -> str:
    narrowed = query["states"] or query["labels"] or query["created_after"]
    return "no runs match" if narrowed else "no runs yet; submit one with: relayctl submit FILE"


def _query(
    every: bool, limit: int | None, states: Sequence[str], labels: Sequence[str], since: str | None
) -> dict[str, Any]:
    return {
        "every": every,
        "limit": limit,
        "states": [_state(name) for name in states],
        "labels": dict(_label(text) for text in labels),
        "created_after": datetime.now(UTC) - timedelta(seconds=parse_duration(since)) if since else None,
    }


def _state(name: str) -> pb.Run.State.ValueType:
    known = [state.lower() for state in pb.Run.State.keys()[1:]]
    if name.lower() not in known:
        raise UsageMistake(f'there is no state "{name}"; known: {", ".join(known)}')
    return pb.Run.State.Value(name.upper())


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageMistake(f'a label reads key=value, found "{text}"')
    return key, value


async def _find(client: RelayClient, *, every: bool, limit: int | None, **query: Any) -> list[pb.Run]:
    if every or query["states"]:
        return await client.runs(limit=limit, **query)
    del query["states"]
    unended = await client.runs(states=UNENDED, limit=limit, **query)
    ended = await client.runs(states=ENDED, limit=limit or _LAST_ENDED, **query)
    found = sorted([*unended, *ended], key=lambda run: run.create_time.ToNanoseconds(), reverse=True)
    return found[:limit]


async def show(client: RelayClient, run: str, output: Output, *, spec: bool) -> ExitCode:
    """One run, or its resolved run file."""
    found = await client.run(run)
    if spec:
        say(single(plain(found)["spec"], Output.YAML if output is Output.TABLE else output))
    elif machine(output):
        say(single(plain(found), output))
    elif output is Output.NAME:
        say(short(found.name))
    else:
        say(views.run_block(found, await client.attempts(run), datetime.now(UTC)))
    return ExitCode.OK


async def why(client: RelayClient, run: str, output: Output) -> ExitCode:
    """Why a run is where it is."""
    found = await client.run(run)
    attempts = await client.attempts(run)
    if output is Output.NAME:
        say(short(found.name))
        return ExitCode.OK
    if machine(output):
        value = {key: plain(found).get(key) for key in ("name", "state", "reason", "error", "failures", "faults")}
        say(single({**value, "attempts": [plain(attempt) for attempt in attempts]}, output))
        return ExitCode.OK
    agents = await client.agents() if found.state == pb.Run.QUEUED else []
    say(views.why_text(found, attempts, agents, datetime.now(UTC)))
    return ExitCode.OK


async def logs(
    client: RelayClient,
    run: str,
    output: Output,
    *,
    follow: bool,
    lines: int,
    since: str | None,
    timestamps: bool,
    attempt: int,
    node: int | None,
) -> ExitCode:
    """What the trainer printed; followed, until the run ends."""
    client.line.patience = 600.0 if follow else client.line.patience
    reader, above = log_lines.LineReader(), (0, 0)
    kept: list[log_lines.LogLine] = []

    def show_line(line: log_lines.LogLine) -> None:
        nonlocal above
        if machine(output):
            say(single(_log_value(line), Output.JSONL))
            return
        if above != (0, 0) and above != (line.attempt, line.node):
            note(log_lines.heading(line))
        above = (line.attempt, line.node)
        say(log_lines.stamped(line) if timestamps else line.text)

    seconds = parse_duration(since) if since else None
    pieces = client.logs(run, attempt=attempt, node=node, since=seconds, tail_lines=lines, follow=follow)
    async for piece in pieces:
        for line in reader.take(piece):
            show_line(line) if follow or not lines else kept.append(line)
    for line in [*kept, *reader.rest()][-lines:]:
        show_line(line)
    if above == (0, 0) and not machine(output):
        note(f"{run} has printed nothing" if not (since or attempt or node) else f"{run} has printed nothing there")
    if not follow:
        return ExitCode.OK
    from relayctl.commands.watch import exit_of

    return exit_of(await client.run(run))


def _log_value(line: log_lines.LogLine) -> dict[str, Any]:
    return {
        "time": line.time.isoformat(),
        "attempt": line.attempt,
        "node": line.node,
        "source": line.source,
        "text": line.text,
    }


async def metrics(
    client: RelayClient,
    run: str,
    names: Sequence[str],
    terminal: Terminal,
    output: Output,
    *,
    plot: bool,
    png: Path | None,
) -> ExitCode:
    """A run's curves: a table, a plot, a picture, or every point."""
    curves = views.series(await client.metrics(run, names))
    if absent := set(names) - {curve.name for curve in curves}:
        known = views.series(await client.metrics(run))
        wanted = ", ".join(f'"{name}"' for name in sorted(absent))
        raise UsageMistake(f"{run} has no metric {wanted}; it has {_listed(known)}")
    if plot or png:
        chosen = plots.chosen(curves, names)
        if not chosen:
            note(f"{run} has no points yet")
            return ExitCode.OK
        if plot:
            say(plots.in_terminal(chosen, terminal.width))
        if png:
            await asyncio.to_thread(plots.png, chosen, png, short(run))
            note(f"wrote {png}")
    elif machine(output):
        say_all(listing("metrics", [_curve(curve) for curve in curves], output))
    elif output is Output.NAME:
        say_all("\n".join(curve.name for curve in curves))
    else:
        say(views.metrics_table(curves, terminal.width) if curves else f"{run} has no points yet")
    return ExitCode.OK


def _listed(curves: Sequence[views.Series]) -> str:
    return ", ".join(curve.name for curve in curves) or "none yet"


def _curve(curve: views.Series) -> dict[str, Any]:
    values = [value if value == value and abs(value) != float("inf") else str(value) for value in curve.values]
    return {"name": curve.name, "steps": list(curve.steps), "values": values, "restarts": list(curve.restarts)}


async def samples(
    client: RelayClient, run: str, output: Output, step: int | None, last_steps: int, kind: str
) -> ExitCode:
    """What the model said, oldest first."""
    found = await client.samples(run, kind=kind, step=step, last_steps=last_steps)
    if machine(output):
        say_all(listing("samples", [plain(sample) for sample in found], output))
    elif found:
        say("\n\n".join(views.sample(each, whole=output is Output.WIDE) for each in found))
    elif step is not None or kind:
        note(f"{run} has no such samples; all: relayctl samples {short(run)} --all")
    else:
        note(f"{run} has no samples; `samples: {{prompts: 8, every: 50}}` in the run file asks for them")
    return ExitCode.OK


async def agents(client: RelayClient, terminal: Terminal, output: Output, *, labels: Sequence[str]) -> ExitCode:
    """The hosts."""
    found = await client.agents(dict(_label(text) for text in labels))
    table = views.agents_table(found, datetime.now(UTC), wide=output is Output.WIDE, width=terminal.width)
    none = "no agents match" if labels else "no agents; start one on a host with: relay-agent"
    say_all(shown("agents", found, output, table if found else none))
    return ExitCode.OK

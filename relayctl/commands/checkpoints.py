"""`relayctl checkpoints`: list a run's checkpoints with the reason why each is kept, pin one, unpin one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient, shorten_name
from relayctl.commands.checkpoint_ref import find_checkpoint
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.commands.options import Format, Quiet, Reason
from relayctl.commands.runner import run_command
from relayctl.output.format import format_age, format_bytes, format_table, make_printable
from relayctl.output.runs import format_metrics, format_stores
from relayctl.output.serialize import Output, format_list, format_value, to_plain
from relayctl.output.terminal import Terminal, say

_VERBS = ("pin", "unpin")


def checkpoints(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="RUN | pin RUN@STEP | unpin RUN@STEP", show_default=False)],
    all: Annotated[
        bool, typer.Option("-a", "--all", help="List also checkpoints that are superseded, or deleted.")
    ] = False,
    reason: Reason = "",
    output: Format = Output.TABLE,
    quiet: Quiet = False,
) -> None:
    """List a run's checkpoints; pin or unpin one.

    The list says why each checkpoint is kept, and which is deleted next. A pinned one (RUN@STEP, RUN@latest) is kept
    whatever the run file says.
    """
    chosen = Output.NAME if quiet else output
    match words:
        case [run]:
            run_command(context, partial(_list, run, all, chosen))
        case [("pin" | "unpin") as verb, point]:
            run_command(context, partial(_pin, point, verb == "pin", reason, chosen))
    run_command(context, partial(_refuse, words))


async def _list(run: str, all: bool, output: Output, client: RelayClient, terminal: Terminal) -> ExitCode:
    found = await client.list_checkpoints(run, include_superseded=all, include_removed=all)
    table = format_checkpoints_table(found, datetime.now(UTC), wide=output is Output.WIDE, width=terminal.width)
    if text := format_list("checkpoints", found, output, table if found else f"{run} has no checkpoints yet"):
        say(text)
    return ExitCode.OK


async def _pin(
    point: str, pinned: bool, reason: str, output: Output, client: RelayClient, terminal: Terminal
) -> ExitCode:
    name = (await find_checkpoint(client, point)).name
    changed = await (client.pin_checkpoint(name, reason) if pinned else client.unpin_checkpoint(name))
    if output is Output.NAME:
        say(shorten_name(changed.name))
    elif output.for_programs:
        say(format_value(to_plain(changed), output))
    else:
        kept = "is kept" if pinned else "is kept for as long as the run file says"
        say(f"step {changed.step} of {point.partition('@')[0]} {kept}")
    return ExitCode.OK


async def _refuse(words: Sequence[str], client: RelayClient, terminal: Terminal) -> ExitCode:
    close = difflib.get_close_matches(words[0], _VERBS, n=1, cutoff=0.6)
    if close and len(words) == 2:
        raise UsageMistake(f"did you mean: relayctl checkpoints {close[0]} {words[1]}")
    raise UsageMistake("write: relayctl checkpoints RUN, or checkpoints pin RUN@STEP, or checkpoints unpin RUN@STEP")


def format_checkpoints_table(
    checkpoints: Sequence[pb.Checkpoint], now: datetime, *, wide: bool = False, width: int | None = None
) -> str:
    """Return the table of checkpoints; why each is kept or deleted is last, so that only it is cut."""
    headers = ["STEP", "TRY", "SIZE", "AGE", "ON", "METRICS"] + (["FILES", "NAME"] if wide else [])
    rows = []
    for checkpoint in checkpoints:
        total, files = sum(p.size for p in checkpoint.parts), sum(p.files for p in checkpoint.parts)
        cells = [str(checkpoint.step), str(checkpoint.attempt), format_bytes(total)]
        cells += [
            format_age(checkpoint.create_time, now),
            format_stores(checkpoint),
            format_metrics(checkpoint.metrics),
        ]
        cells += [str(files), shorten_name(checkpoint.name)] if wide else []
        rows.append([*cells, describe_retention(checkpoint)])
    return format_table([*headers, "KEPT BECAUSE"], rows, width)


def describe_retention(checkpoint: pb.Checkpoint) -> str:
    """Return why a checkpoint is kept, or that it is deleted, and why."""
    if checkpoint.HasField("remove_time"):
        left = any(part.copies for part in checkpoint.parts)
        return f"{'being deleted' if left else 'deleted'}: {checkpoint.remove_reason}"
    if checkpoint.remove_reason:
        return f"deleted next: {checkpoint.remove_reason}"
    pin = f"pinned: {make_printable(checkpoint.pin_reason)}" if checkpoint.pin_reason else "pinned"
    reasons = [pin if reason == "pinned" else reason for reason in checkpoint.keep_reasons]
    return ", ".join([*(["superseded"] if checkpoint.superseded else []), *reasons])

"""`relayctl cancel`, `pause` and `resume`: change what is wanted of a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient, shorten_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format, Reason, RunName
from relayctl.commands.runner import run_command
from relayctl.output.runs import describe_state
from relayctl.output.serialize import Output, format_value, to_plain
from relayctl.output.terminal import Terminal, say

Change = Callable[[RelayClient], Awaitable[pb.Run]]


def cancel(context: typer.Context, run: RunName, reason: Reason = "", output: Format = Output.TABLE) -> None:
    """Cancel a run; its trainer saves a checkpoint first."""
    run_command(context, partial(_change, lambda client: client.cancel_run(run, reason), output))


def pause(context: typer.Context, run: RunName, reason: Reason = "", output: Format = Output.TABLE) -> None:
    """Pause a run; its trainer saves a checkpoint first."""
    run_command(context, partial(_change, lambda client: client.pause_run(run, reason), output))


def resume(context: typer.Context, run: RunName, output: Format = Output.TABLE) -> None:
    """Resume a paused run from its newest checkpoint."""
    run_command(context, partial(_change, lambda client: client.resume_run(run), output))


async def _change(change: Change, output: Output, client: RelayClient, terminal: Terminal) -> ExitCode:
    run = await change(client)
    if output is Output.NAME:
        say(shorten_name(run.name))
    elif output.for_programs:
        say(format_value(to_plain(run), output))
    else:
        say(f"{shorten_name(run.name)} {describe_state(run)}")
    return ExitCode.OK

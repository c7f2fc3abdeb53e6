"""`relayctl submit`: plan a run, show the plan, upload its files and create it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client import RelayClient, Unreachable
from relayctl.client.client import ENDED, short_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import DryRun, Format, Overrides, Quiet
from relayctl.commands.runner import run_command
from relayctl.commands.watch import watch_run
from relayctl.output.runs import describe_state
from relayctl.output.serialize import Output, format_value, to_plain
from relayctl.output.terminal import Terminal, progress_bars, say

if TYPE_CHECKING:
    from relayctl.client.submission import PreparedRun


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """What the command line asks for."""

    file: Path
    sets: Sequence[str]
    name: str | None
    dry_run: bool
    watch: bool
    output: Output

    @property
    def for_users(self) -> bool:
        """Whether the plan is shown and the result said in a sentence."""
        return self.output in (Output.TABLE, Output.WIDE)


def submit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The run file (YAML, JSON or TOML).", show_default=False)],
    sets: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name the run.", show_default=False)] = None,
    dry_run: DryRun = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch the run until it ends.")] = False,
    output: Format = Output.TABLE,
    quiet: Quiet = False,
) -> None:
    """Submit a run file: check it, show the plan, create the run.

    Files that the run file names are uploaded as far as the coordinator does not have them. With --watch the exit code
    says how the run ended.
    """
    request = SubmitRequest(file, sets or (), name, dry_run, watch, Output.NAME if quiet else output)
    on_interrupt = "a run that was created goes on without you; see: relayctl runs"
    run_command(context, partial(_submit, request), on_interrupt)


async def _submit(request: SubmitRequest, client: RelayClient, terminal: Terminal) -> ExitCode:
    from relayctl.client.submission import prepare_run, submit_run  # loads the run file's models, which takes a while

    prepared = await prepare_run(request.file, request.sets, request.name)
    validated = await _show_plan(request, client, prepared)
    if request.dry_run:
        if not request.for_users:
            say(_format_response(validated, request.output))
        return ExitCode.OK
    with progress_bars(terminal) as bars:
        response = await submit_run(client, prepared, bars)
    say(_format_response(response, request.output))
    return await watch_run(client, terminal, response.run.name) if request.watch else ExitCode.OK


async def _show_plan(request: SubmitRequest, client: RelayClient, prepared: PreparedRun) -> pb.CreateRunResponse:
    """Print the plan and return the coordinator's answer to it; a rehearsal shows the plan without an answer, too."""
    from relayctl.client.submission import validate_run
    from relayctl.output.plan import format_run_plan

    try:
        validated = await validate_run(client, prepared)
    except Unreachable:
        if request.dry_run and request.for_users:
            say(format_run_plan(prepared, None))
        raise
    if request.for_users:
        say(format_run_plan(prepared, validated))
    return validated


def _format_response(response: pb.CreateRunResponse, output: Output) -> str:
    name = short_name(response.run.name)
    if output is Output.NAME:
        return name
    if output.for_programs:
        return format_value(to_plain(response), output)
    if response.created:
        return f"\nsubmitted {name}; watch it with: relayctl watch {name}"
    again = "; to run it again: --name ANOTHER" if response.run.state in ENDED else ""
    return f"\n{name} had been submitted already and it {describe_state(response.run)}; nothing new was started{again}"

"""`relayctl submit`: plan a run, show the plan, upload its files and create it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client import CoordinatorUnreachable, RelayClient
from relayctl.client.client import ENDED, shorten_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import DryRun, Format, Overrides, Quiet
from relayctl.commands.runner import run_command
from relayctl.commands.watch import watch_run
from relayctl.output.runs import describe_state
from relayctl.output.serialize import Output, format_value, to_plain
from relayctl.output.terminal import Terminal, say, show_progress_bars

if TYPE_CHECKING:
    from relayctl.client.submission import PreparedSubmission


@dataclass(frozen=True, slots=True)
class SubmitArguments:
    """The arguments of `submit`."""

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
    file: Annotated[
        Path, typer.Argument(help="The run file (YAML, JSON or TOML).", metavar="FILE", show_default=False)
    ],
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
    arguments = SubmitArguments(file, sets or (), name, dry_run, watch, Output.NAME if quiet else output)
    on_interrupt = "a run that was created goes on without you; see: relayctl runs"
    run_command(context, partial(_submit, arguments), on_interrupt)


async def _submit(arguments: SubmitArguments, client: RelayClient, terminal: Terminal) -> ExitCode:
    from relayctl.client.submission import prepare_run, submit_run  # loads the run file's models, which takes a while

    prepared = await prepare_run(arguments.file, arguments.sets, arguments.name)
    validated = await _show_plan(arguments, client, prepared)
    if arguments.dry_run:
        if not arguments.for_users:
            say(_format_response(validated, arguments.output))
        return ExitCode.OK
    with show_progress_bars(terminal) as bars:
        response = await submit_run(client, prepared, bars)
    say(_format_response(response, arguments.output))
    return await watch_run(client, terminal, response.run.name) if arguments.watch else ExitCode.OK


async def _show_plan(
    arguments: SubmitArguments, client: RelayClient, prepared: PreparedSubmission
) -> pb.CreateRunResponse:
    """Print the plan and return the coordinator's answer to it; a rehearsal shows the plan without an answer, too."""
    from relayctl.client.submission import validate_run
    from relayctl.output.plan import format_run_plan

    try:
        validated = await validate_run(client, prepared)
    except CoordinatorUnreachable:
        if arguments.dry_run and arguments.for_users:
            say(format_run_plan(prepared, None))
        raise
    if arguments.for_users:
        say(format_run_plan(prepared, validated))
    return validated


def _format_response(response: pb.CreateRunResponse, output: Output) -> str:
    name = shorten_name(response.run.name)
    if output is Output.NAME:
        return name
    if output.for_programs:
        return format_value(to_plain(response), output)
    if response.created:
        return f"\nsubmitted {name}; watch it with: relayctl watch {name}"
    again = "; to run it again: --name ANOTHER" if response.run.state in ENDED else ""
    return f"\n{name} had been submitted already and it {describe_state(response.run)}; nothing new was started{again}"

"""`relayctl submit`: plan a run, show the plan, upload its files and create it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client import RelayClient
from relayctl.client.client import ENDED, shorten_name
from relayctl.commands.creation import CreationArguments, create_planned_run, show_plan
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import DryRun, Format, Overrides, Quiet
from relayctl.commands.runner import run_command
from relayctl.commands.watch import watch_run
from relayctl.output.runs import describe_state
from relayctl.output.serialize import Output
from relayctl.output.terminal import Terminal


@dataclass(frozen=True, slots=True)
class SubmitArguments(CreationArguments):
    """The arguments of `submit`."""

    watch: bool


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
    arguments = SubmitArguments(file, sets or (), name, dry_run, Output.NAME if quiet else output, watch)
    on_interrupt = "a run that was created goes on without you; see: relayctl runs"
    run_command(context, partial(_submit, arguments), on_interrupt)


async def _submit(arguments: SubmitArguments, client: RelayClient, terminal: Terminal) -> ExitCode:
    # They load the run file's models, which takes a while.
    from relayctl.client.submission import prepare_run, submit_run, validate_run
    from relayctl.output.plan import format_run_plan

    prepared = await prepare_run(arguments.file, arguments.sets, arguments.name)
    validated = await show_plan(arguments, validate_run(client, prepared), partial(format_run_plan, prepared))
    create = partial(submit_run, client, prepared)
    created = await create_planned_run(arguments, terminal, validated, create, _format_result)
    return await watch_run(client, terminal, created.run.name) if arguments.watch and created else ExitCode.OK


def _format_result(response: pb.CreateRunResponse) -> str:
    name = shorten_name(response.run.name)
    if response.created:
        return f"\nsubmitted {name}; watch it with: relayctl watch {name}"
    again = "; to run it again: --name ANOTHER" if response.run.state in ENDED else ""
    return f"\n{name} had been submitted already and it {describe_state(response.run)}; nothing new was started{again}"

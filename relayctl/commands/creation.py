"""What `submit` and `import` share: show the plan first, then create the run, unless only the plan was asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from relay.v1 import runs_pb2 as pb
from relayctl.client import CoordinatorUnreachable
from relayctl.client.artifacts import StartProgress
from relayctl.client.client import shorten_name
from relayctl.output.serialize import Output, format_value, to_plain
from relayctl.output.terminal import Terminal, say, show_progress_bars

Response = TypeVar("Response", pb.CreateRunResponse, pb.ImportRunResponse)


@dataclass(frozen=True, slots=True)
class CreationArguments:
    """The arguments of a command that creates a run from a run file."""

    file: Path
    sets: Sequence[str]
    name: str | None
    dry_run: bool
    output: Output

    @property
    def for_users(self) -> bool:
        """Whether the plan is shown and the result said in a sentence."""
        return self.output in (Output.TABLE, Output.WIDE)


async def show_plan(
    arguments: CreationArguments, validation: Awaitable[Response], format_plan: Callable[[Response | None], str]
) -> Response:
    """Print the plan and return the coordinator's answer to it; a rehearsal shows the plan without an answer, too."""
    try:
        validated = await validation
    except CoordinatorUnreachable:
        if arguments.dry_run and arguments.for_users:
            say(format_plan(None))
        raise
    if arguments.for_users:
        say(format_plan(validated))
    return validated


async def create_planned_run(
    arguments: CreationArguments,
    terminal: Terminal,
    validated: Response,
    create: Callable[[StartProgress], Awaitable[Response]],
    format_result: Callable[[Response], str],
) -> Response | None:
    """Create the run, print the result and return it; a rehearsal creates nothing and prints the coordinator's answer
    for programs.
    """
    if arguments.dry_run:
        if not arguments.for_users:
            say(_format_response(arguments.output, validated, format_result))
        return None
    with show_progress_bars(terminal) as bars:
        response = await create(bars)
    say(_format_response(arguments.output, response, format_result))
    return response


def _format_response(output: Output, response: Response, format_result: Callable[[Response], str]) -> str:
    if output is Output.NAME:
        return shorten_name(response.run.name)
    return format_value(to_plain(response), output) if output.for_programs else format_result(response)

"""`relayctl pull`: fetch a run's result or one of its checkpoints into a folder, every byte verified."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from relayctl.client import PullFailed, RelayClient
from relayctl.client.client import shorten_name
from relayctl.client.copies import fetch_part, fetch_result, require_free
from relayctl.commands.checkpoint_ref import find_complete_checkpoint
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import RunOrCheckpoint
from relayctl.commands.runner import run_command
from relayctl.output.format import format_bytes, format_count
from relayctl.output.runs import describe_state
from relayctl.output.terminal import Terminal, note, say, show_progress_bars


def pull(
    context: typer.Context,
    what: RunOrCheckpoint,
    folder: Annotated[
        Path, typer.Argument(help="Where to put the files.", metavar="DIR", file_okay=False, show_default=False)
    ],
) -> None:
    """Fetch a run's result or a checkpoint; verify every file.

    A checkpoint is fetched from whichever of its copies can be reached and is sound. What is in the folder already and
    matches is not fetched again.
    """
    work = partial(pull_checkpoint, point=what) if "@" in what else partial(_pull_result, run=what)
    run_command(context, partial(work, folder=folder), "fetch the rest with the same command")


async def _pull_result(client: RelayClient, terminal: Terminal, run: str, folder: Path) -> ExitCode:
    found = await client.get_run(run)
    if not found.HasField("output"):
        raise PullFailed(f"{shorten_name(found.name)} has no output: it {describe_state(found)}")
    with show_progress_bars(terminal) as bars:
        content = await fetch_result(client, found.output, folder, bars("fetching", found.output.size))
    say(f"{format_count(len(content.files), 'file')}, {format_bytes(content.size)}, verified, in {folder}")
    if not content.files:
        note("the run published no files")
    return ExitCode.OK


async def pull_checkpoint(client: RelayClient, terminal: Terminal, point: str, folder: Path) -> ExitCode:
    """Fetch a checkpoint, each node's part into a folder of its own where there are several."""
    checkpoint = await find_complete_checkpoint(client, point)
    await require_free(folder)
    files = 0
    with show_progress_bars(terminal) as bars:
        for part in checkpoint.parts:
            target = folder / f"node_{part.node:04d}" if len(checkpoint.parts) > 1 else folder
            content = await fetch_part(client, part, target, bars("fetching", part.size))
            files += len(content.files)
    total = format_bytes(sum(part.size for part in checkpoint.parts))
    say(f"step {checkpoint.step}: {format_count(files, 'file')}, {total}, verified, in {folder}")
    return ExitCode.OK

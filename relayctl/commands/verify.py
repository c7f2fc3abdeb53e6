"""`relayctl verify`: whether the copies of a run's checkpoints are there whole."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from relay.errors import BlobUnknown, DigestMismatch, RelayError
from relay.v1 import runs_pb2 as pb
from relayctl.client import PullFailed, RelayClient
from relayctl.client.artifacts import Blob
from relayctl.client.client import shorten_name
from relayctl.client.copies import HOST, RELAY, fetch_copy, get_reader, list_fetchable_copies, open_readers
from relayctl.commands.checkpoint_ref import find_checkpoint
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format, RunOrCheckpoint
from relayctl.commands.runner import run_command
from relayctl.output.format import format_table
from relayctl.output.serialize import Output, format_values
from relayctl.output.terminal import Terminal, note, say, show_progress_bars
from storage.base import DamagedCopy, Progress, StoreRefused, StoreUnavailable, ignore_progress
from storage.stores import StoresByScheme


@dataclass(frozen=True, slots=True)
class CopyCheck:
    """The state of one copy. `wrong` is empty when it is sound, and None when this machine cannot look at it."""

    step: int
    node: int
    uri: str
    state: str
    wrong: str | None


def verify(
    context: typer.Context,
    what: RunOrCheckpoint,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of every copy.")] = False,
    output: Format = Output.TABLE,
) -> None:
    """Check the copies of a run's checkpoints.

    The exit code is 1 when a copy is damaged or cannot be reached.
    """
    run_command(context, partial(_verify, what, deep, output))


async def _verify(what: str, deep: bool, output: Output, client: RelayClient, terminal: Terminal) -> ExitCode:
    if "@" in what:
        checkpoints: Sequence[pb.Checkpoint] = [await find_checkpoint(client, what)]
    else:
        checkpoints = await client.list_checkpoints(what)
    checks = []
    with show_progress_bars(terminal) as bars:
        for checkpoint in checkpoints:
            for part in checkpoint.parts:
                total = part.size * len(list_fetchable_copies(part))
                progress = bars(f"step {checkpoint.step}", total) if deep else ignore_progress
                checks += await _check_part(client, checkpoint, part, progress, deep=deep)
    if text := _format(what, checks, output, terminal.width):
        say(text)
    wrong = [check for check in checks if check.wrong]
    for check in wrong:
        note(f"step {check.step}, {check.uri}: {check.wrong}")
    return ExitCode.ERROR if wrong else ExitCode.OK


def _format(what: str, checks: Sequence[CopyCheck], output: Output, width: int | None) -> str:
    if output.for_programs:
        return format_values("copies", [asdict(check) for check in checks], output)
    rows = [[str(check.step), str(check.node), check.state, check.uri] for check in checks]
    return (
        format_table(["STEP", "NODE", "STATE", "COPY"], rows, width) if rows else f"{shorten_name(what)} has no copies"
    )


async def _check_part(
    client: RelayClient, checkpoint: pb.Checkpoint, part: pb.CheckpointPart, progress: Progress, *, deep: bool
) -> list[CopyCheck]:
    readers, checks = open_readers(), []
    for copy in part.copies:
        if copy.HasField("remove_time"):
            continue
        state, wrong = await _check_copy(client, readers, copy, part.manifest_digest, progress, deep=deep)
        checks.append(CopyCheck(checkpoint.step, part.node, copy.uri, state, wrong))
    return checks


async def _check_copy(
    client: RelayClient, readers: StoresByScheme, copy: pb.Copy, digest: str, progress: Progress, *, deep: bool
) -> tuple[str, str | None]:
    """Return the state of a copy and what is wrong with it, as `CopyCheck` has them."""
    if copy.store == HOST:
        return "not seen from here", None
    try:
        if deep:
            await _read_copy(client, readers, copy, digest, progress)
            return "sound", ""
        if await _has_files(client, readers, copy, digest):
            return "there", ""
        return "not whole", "files of it are gone, or of another size"
    except (PullFailed, DamagedCopy, BlobUnknown, DigestMismatch) as error:
        return "damaged", str(error)
    except (RelayError, StoreUnavailable, StoreRefused) as error:
        return "out of reach", str(error)


async def _has_files(client: RelayClient, readers: StoresByScheme, copy: pb.Copy, digest: str) -> bool:
    if copy.store == RELAY:
        content = await client.artifacts.read_manifest(digest)
        return not await client.artifacts.find_missing(Blob(file.digest, file.size, b"") for file in content.files)
    return await get_reader(readers, copy.store).has(copy.uri, digest)


async def _read_copy(
    client: RelayClient, readers: StoresByScheme, copy: pb.Copy, digest: str, progress: Progress
) -> None:
    """Fetch a copy into a temporary folder, which takes as much disk space as the copy has."""
    with tempfile.TemporaryDirectory(prefix="relay-verify-") as folder:
        await fetch_copy(client, readers, copy, digest, Path(folder), progress)

"""Copies of checkpoints, reached from where a person is: fetched from whichever is sound, and looked after."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from relay.errors import BlobUnknown, DigestMismatch, RelayError
from relay.v1 import runs_pb2 as pb
from relayctl.client.artifacts import Blob, PullFailed
from relayctl.client.client import RelayClient, short
from relayctl.commands import checkpoint_ref
from relayctl.commands.exits import ExitCode
from relayctl.commands.looking import machine, say_all
from relayctl.output.format import count, size, table
from relayctl.output.serialize import Output, listing
from relayctl.output.terminal import Terminal, byte_bars, note, say
from storage.base import DamagedCopy, Progress, Store, StoreRefused, StoreUnavailable, ignore_progress
from storage.hub.store import CommitRateLimit, HubStore
from storage.hub.worker import HubWorker
from storage.manifest import MANIFEST_FILE, Manifest
from storage.stores import StoresByScheme

HOST, RELAY = "host", "relay"


def readers() -> StoresByScheme:
    """The stores that this machine reaches by itself, with the credentials in its own environment."""
    hub: Store = HubStore(HubWorker(sys.executable, os.environ), "", commit_limit=CommitRateLimit(), now=time.monotonic)
    return StoresByScheme({"hf": hub})


async def complete(client: RelayClient, point: str) -> pb.Checkpoint:
    """The checkpoint that a person means; PullFailed when a part of it is not there yet."""
    checkpoint = await checkpoint_ref.at(client, point)
    if not checkpoint.complete:
        raise PullFailed(f"step {checkpoint.step} is not complete: not all nodes have saved their part")
    return checkpoint


async def pull(client: RelayClient, point: str, folder: Path, terminal: Terminal) -> ExitCode:
    """Fetches a checkpoint from a copy that can be reached, every byte verified; goes on with what is there already."""
    checkpoint = await complete(client, point)
    if await asyncio.to_thread((folder / MANIFEST_FILE).exists):
        raise PullFailed(f"{folder / MANIFEST_FILE} is in the way: pull into another folder")
    files = 0
    with byte_bars(terminal) as bars:
        for part in checkpoint.parts:
            place = folder / f"node_{part.node:04d}" if len(checkpoint.parts) > 1 else folder
            content = await fetched(client, part, place, bars("fetching", part.size))
            files += len(content.files)
    total = size(sum(part.size for part in checkpoint.parts))
    say(f"step {checkpoint.step}: {count(files, 'file')}, {total}, verified, in {folder}")
    return ExitCode.OK


async def fetched(client: RelayClient, part: pb.CheckpointPart, folder: Path, progress: Progress) -> Manifest:
    """From the first copy that is sound; PullFailed says of each why it is not."""
    stores, reasons = readers(), []
    for copy in _of_interest(part):
        try:
            return await _fetch(client, stores, copy, part.manifest_digest, folder, progress)
        except (PullFailed, RelayError, DamagedCopy, StoreUnavailable, StoreRefused) as error:
            reasons.append(f"{copy.uri}: {error}")
    on = [copy.uri.removeprefix("host://") for copy in part.copies if copy.store == HOST]
    if not reasons:
        where = f"it lies on {' and '.join(on)} only" if on else "no copy of it is left"
        raise PullFailed(f"it cannot be fetched: {where}")
    raise PullFailed("it cannot be fetched: " + "; ".join(reasons))


async def _fetch(
    client: RelayClient, stores: StoresByScheme, copy: pb.Copy, digest: str, folder: Path, progress: Progress
) -> Manifest:
    if copy.store == RELAY:
        content = await client.artifacts.contents(digest)
        await client.artifacts.pull(content, folder, progress)
        return content
    if (store := stores.get(copy.store)) is None:
        raise StoreRefused(f"{copy.store}:// cannot be read here")
    content = await store.fetch(copy.uri, digest, folder, progress)
    await asyncio.to_thread((folder / MANIFEST_FILE).unlink)
    return content


def _of_interest(part: pb.CheckpointPart) -> list[pb.Copy]:
    """Copies that can be fetched from outside, the coordinator's first; what is being removed is none any more."""
    kept = [copy for copy in part.copies if copy.store != HOST and not copy.HasField("remove_time")]
    return sorted(kept, key=lambda copy: copy.store != RELAY)


@dataclass(frozen=True, slots=True)
class Found:
    """What became of looking at one copy. `wrong` is empty when it is sound, None when nobody could look."""

    step: int
    node: int
    uri: str
    state: str
    wrong: str | None


async def verify(client: RelayClient, which: str, terminal: Terminal, output: Output, *, deep: bool) -> ExitCode:
    """Looks at every copy of a run's checkpoints, or of one: whether it is there whole; when `deep`, at every byte."""
    if "@" in which:
        checkpoints: Sequence[pb.Checkpoint] = [await checkpoint_ref.at(client, which)]
    else:
        checkpoints = await client.checkpoints(which)
    found = []
    with byte_bars(terminal) as bars:
        for checkpoint in checkpoints:
            for part in checkpoint.parts:
                progress = (
                    bars(f"step {checkpoint.step}", part.size * len(_of_interest(part))) if deep else ignore_progress
                )
                found += await _looked_at(client, checkpoint, part, progress, deep=deep)
    rows = [[str(each.step), str(each.node), each.state, each.uri] for each in found]
    if machine(output):
        say_all(listing("copies", [asdict(each) for each in found], output))
    else:
        say(table(["STEP", "NODE", "STATE", "COPY"], rows, terminal.width) if rows else f"{short(which)} has no copies")
    wrong = [each for each in found if each.wrong]
    for each in wrong:
        note(f"step {each.step}, {each.uri}: {each.wrong}")
    return ExitCode.ERROR if wrong else ExitCode.OK


async def _looked_at(
    client: RelayClient, checkpoint: pb.Checkpoint, part: pb.CheckpointPart, progress: Progress, *, deep: bool
) -> list[Found]:
    stores, found = readers(), []
    for copy in (each for each in part.copies if not each.HasField("remove_time")):
        state = "sound" if deep else "there"
        wrong: str | None = ""
        try:
            if copy.store == HOST:
                state, wrong = "not seen from here", None
            elif deep:
                await _read(client, stores, copy, part.manifest_digest, progress)
            elif not await _is_there(client, stores, copy, part.manifest_digest):
                state, wrong = "not whole", "files of it are gone, or of another size"
        except (PullFailed, DamagedCopy, BlobUnknown, DigestMismatch) as error:
            state, wrong = "damaged", str(error)
        except (RelayError, StoreUnavailable, StoreRefused) as error:
            state, wrong = "out of reach", str(error)
        found.append(Found(checkpoint.step, part.node, copy.uri, state, wrong))
    return found


async def _is_there(client: RelayClient, stores: StoresByScheme, copy: pb.Copy, digest: str) -> bool:
    if copy.store == RELAY:
        content = await client.artifacts.contents(digest)
        return not await client.artifacts.missing(Blob(file.digest, file.size, b"") for file in content.files)
    if (store := stores.get(copy.store)) is None:
        raise StoreRefused(f"{copy.store}:// cannot be read here")
    return await store.has(copy.uri, digest)


async def _read(client: RelayClient, stores: StoresByScheme, copy: pb.Copy, digest: str, progress: Progress) -> None:
    """Every byte, which takes as much room in the temporary folder as the copy has."""
    with tempfile.TemporaryDirectory(prefix="relay-verify-") as folder:
        await _fetch(client, stores, copy, digest, Path(folder), progress)

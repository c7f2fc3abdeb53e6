"""A checkpoint put into another store, from whichever copy is sound, and made known to the coordinator."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from relay.errors import BlobUnknown, CheckpointRemoved, DigestMismatch
from relay.v1 import runs_pb2 as pb
from relayctl.client import copies
from relayctl.client.artifacts import Artifacts, Blob, PullFailed, SendFailed
from relayctl.client.client import RelayClient, short
from relayctl.commands.exits import ExitCode
from relayctl.commands.looking import UsageMistake
from relayctl.output.format import count, size
from relayctl.output.terminal import Terminal, byte_bars, say
from storage.address import AddressError, parse_address
from storage.base import FolderKey, LocateFile, PathStore, Progress, StoreRefused, StoreUnavailable, ignore_progress
from storage.layout import Layout
from storage.manifest import Manifest
from storage.stores import open_store

OWN = "relay://"  #: the coordinator's own store
Bars = Callable[[str, int], Progress]


@dataclass(frozen=True, slots=True)
class OwnStore:
    """The coordinator's own, where a folder is its files' blobs and its manifest's."""

    artifacts: Artifacts
    scheme: str = "relay"

    async def has(self, uri: str, digest: str) -> bool:
        try:
            content = await self.artifacts.contents(digest)
        except (BlobUnknown, DigestMismatch, PullFailed):
            return False
        return not await self.artifacts.missing(Blob(file.digest, file.size, b"") for file in content.files)

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        blobs = {file.digest: Blob(file.digest, file.size, locate(file)) for file in manifest.files}
        missing = await self.artifacts.missing(blobs.values())
        progress(manifest.size - sum(blob.size for blob in missing))
        await self.artifacts.upload(missing, progress)
        last = Blob.of_bytes(manifest.to_bytes())
        await self.artifacts.upload(await self.artifacts.missing([last]))
        return f"{OWN}{manifest.digest}"


async def push(client: RelayClient, point: str, to: str, terminal: Terminal, *, pin: bool) -> ExitCode:
    """Puts every part of a checkpoint there that is not there yet."""
    check_target(to)
    checkpoint = await copies.complete(client, point)
    if checkpoint.HasField("remove_time"):
        raise CheckpointRemoved(f"the checkpoint of step {checkpoint.step} has been let go: {checkpoint.remove_reason}")
    run = await client.run(checkpoint.name.split("/")[1])
    spec = json_format.MessageToDict(run.spec)
    with byte_bars(terminal) as bars, telling(to):
        store = _store(client, to, spec)
        async with _staying(client, checkpoint, f"pushed to {to}", pin=pin) as stays:
            places = [(part, _place(checkpoint, part, spec)) for part in checkpoint.parts]
            sent = [await _put(client, store, place, checkpoint, part, bars) for part, place in places]
    step = f"step {checkpoint.step} of {short(run.name)}"
    if any(sent):
        files, total = sum(part.files for part in checkpoint.parts), sum(part.size for part in checkpoint.parts)
        say(f"{step} is in {to} now: {count(files, 'file')}, {size(total)}; {stays}")
    else:
        say(f"{step} was in {to} already, nothing was sent; {stays}")
    return ExitCode.OK


def check_target(to: str) -> None:
    """UsageMistake unless this is where a checkpoint can be pushed."""
    if to.startswith("hf://"):
        raise UsageMistake(
            "--to: a checkpoint cannot be pushed to the Hub; its model can: relayctl export RUN@STEP --to hf://…"
        )
    if to.startswith("relay:"):
        if to != OWN:
            raise UsageMistake(f"--to: the coordinator's own store is just {OWN}")
        return
    try:
        parse_address(to)
    except AddressError as error:
        raise UsageMistake(f"--to: {error}") from error


def _store(client: RelayClient, to: str, spec: dict[str, Any]) -> OwnStore | PathStore:
    if to == OWN:
        return OwnStore(client.artifacts)
    return open_store(to, Layout(spec.get("checkpoint", {}).get("layout") or Layout.RELAY))


def _place(checkpoint: pb.Checkpoint, part: pb.CheckpointPart, spec: dict[str, Any]) -> FolderKey:
    """As its host's agent would have it."""
    return FolderKey(
        run=checkpoint.name.split("/")[1],
        framework=spec.get("framework", "hf"),
        attempt=checkpoint.attempt,
        lease=short(checkpoint.lease),
        step=checkpoint.step,
        node=part.node,
        nodes=len(checkpoint.parts),
    )


async def _put(
    client: RelayClient,
    store: OwnStore | PathStore,
    key: FolderKey,
    checkpoint: pb.Checkpoint,
    part: pb.CheckpointPart,
    bars: Bars,
) -> bool:
    """Whether it had to be sent. What lies there and is known is left as it is."""
    digest = part.manifest_digest
    uri = f"{OWN}{digest}" if isinstance(store, OwnStore) else store.uri_of(key)
    there = await store.has(uri, digest)
    if not there:
        with tempfile.TemporaryDirectory(prefix="relay-push-") as name:
            folder = Path(name)
            content = await copies.fetched(client, part, folder, bars("fetching", part.size))
            await store.put(key, content, lambda file: folder / file.path, bars("sending", part.size))
    await client.add_copy(checkpoint.name, part.node, digest, pb.Copy(store=store.scheme, uri=uri))
    return not there


@asynccontextmanager
async def _staying(client: RelayClient, checkpoint: pb.Checkpoint, reason: str, *, pin: bool) -> AsyncIterator[str]:
    """Pinned from before the first byte, lest it be let go on its way; and no longer when that breaks off."""
    if checkpoint.pinned:
        yield "it stays: it had been pinned" + (f" ({checkpoint.pin_reason})" if checkpoint.pin_reason else "")
        return
    if not pin:
        yield "it stays for as long as the run file says"
        return
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.unpin, checkpoint.name)
        await client.pin(checkpoint.name, reason)
        run = checkpoint.name.split("/")[1]
        yield f"it is pinned, until: relayctl checkpoints unpin {run}@{checkpoint.step}"
        stack.pop_all()


@contextmanager
def telling(to: str) -> Iterator[None]:
    """What is wrong with the store is said of the store."""
    try:
        yield
    except StoreUnavailable as away:
        raise SendFailed(f"{to} cannot be reached; try again later: {away}") from away
    except StoreRefused as refused:
        raise SendFailed(f"{to} does not take it: {refused}") from refused

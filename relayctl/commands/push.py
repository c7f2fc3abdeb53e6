"""`relayctl push`: copy a checkpoint into another store and register the copy with the coordinator."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from relay.errors import BlobUnknown, CheckpointRemoved, DigestMismatch
from relay.v1 import runs_pb2 as pb
from relayctl.client import PullFailed, RelayClient, SendFailed
from relayctl.client.artifacts import ArtifactsClient, Blob, StartProgress
from relayctl.client.client import shorten_name
from relayctl.client.copies import fetch_part
from relayctl.commands.checkpoint_ref import find_complete_checkpoint
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.commands.runner import run_command
from relayctl.output.format import format_bytes, format_count
from relayctl.output.terminal import Terminal, say, show_progress_bars
from storage.address import AddressError, parse_address
from storage.base import FolderKey, LocateFile, PathStore, Progress, StoreRefused, StoreUnavailable, ignore_progress
from storage.layout import Layout
from storage.manifest import Manifest
from storage.stores import open_store

OWN = "relay://"  #: the coordinator's own store


def push(
    context: typer.Context,
    point: Annotated[
        str, typer.Argument(help="RUN@STEP, RUN@latest or RUN@best.", metavar="RUN@STEP", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Copy it to this store: relay://, file:///…, s3://…, gs://… or az://….",
            metavar="URI",
            show_default=False,
        ),
    ],
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Pin the checkpoint, so that it is kept.")] = True,
) -> None:
    """Copy a checkpoint into another store, with your credentials.

    The coordinator learns of the copy, so that hosts resume from it as well.
    """
    on_interrupt = "a copy that is not complete was not registered with the coordinator; push it again"
    run_command(context, partial(push_checkpoint, point=point, to=to, pin=pin), on_interrupt)


@dataclass(frozen=True, slots=True)
class CoordinatorStore:
    """The coordinator's own store, where a folder is kept as the blobs of its files and of its manifest."""

    artifacts: ArtifactsClient
    scheme: str = "relay"

    async def has(self, uri: str, digest: str) -> bool:
        """Return whether the folder of this manifest is stored whole."""
        try:
            content = await self.artifacts.read_manifest(digest)
        except (BlobUnknown, DigestMismatch, PullFailed):
            return False
        return not await self.artifacts.find_missing(Blob(file.digest, file.size, b"") for file in content.files)

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        """Upload the blobs that are missing, the manifest last, and return the copy's URI."""
        blobs = {file.digest: Blob(file.digest, file.size, locate(file)) for file in manifest.files}
        missing = await self.artifacts.find_missing(blobs.values())
        progress(manifest.size - sum(blob.size for blob in missing))
        await self.artifacts.upload(missing, progress)
        last = Blob.from_bytes(manifest.to_bytes())
        await self.artifacts.upload(await self.artifacts.find_missing([last]))
        return f"{OWN}{manifest.digest}"


async def push_checkpoint(client: RelayClient, terminal: Terminal, point: str, to: str, pin: bool) -> ExitCode:
    """Put every part of a checkpoint that is not there yet into the store."""
    _check_target(to)
    checkpoint = await find_complete_checkpoint(client, point)
    if checkpoint.HasField("remove_time"):
        raise CheckpointRemoved(f"the checkpoint of step {checkpoint.step} was deleted: {checkpoint.remove_reason}")
    run = await client.get_run(checkpoint.name.split("/")[1])
    spec = json_format.MessageToDict(run.spec)
    with show_progress_bars(terminal) as bars, name_store_in_errors(to):
        store = _open_target(client, to, spec)
        async with _keep_meanwhile(client, checkpoint, f"pushed to {to}", pin=pin) as kept:
            keys = [(part, _make_key(checkpoint, part, spec)) for part in checkpoint.parts]
            sent = [await _put_part(client, store, key, checkpoint, part, bars) for part, key in keys]
    step = f"step {checkpoint.step} of {shorten_name(run.name)}"
    if any(sent):
        files, total = sum(part.files for part in checkpoint.parts), sum(part.size for part in checkpoint.parts)
        say(f"{step} is in {to} now: {format_count(files, 'file')}, {format_bytes(total)}; {kept}")
    else:
        say(f"{step} was in {to} already, nothing was sent; {kept}")
    return ExitCode.OK


def _check_target(to: str) -> None:
    """Raise UsageMistake for what is no store that a checkpoint can be pushed to."""
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


def _open_target(client: RelayClient, to: str, spec: dict[str, Any]) -> CoordinatorStore | PathStore:
    if to == OWN:
        return CoordinatorStore(client.artifacts)
    return open_store(to, Layout(spec.get("checkpoint", {}).get("layout") or Layout.RELAY))


def _make_key(checkpoint: pb.Checkpoint, part: pb.CheckpointPart, spec: dict[str, Any]) -> FolderKey:
    """Return the key under which the host's agent would have published the part."""
    return FolderKey(
        run=checkpoint.name.split("/")[1],
        framework=spec.get("framework", "hf"),
        attempt=checkpoint.attempt,
        lease=shorten_name(checkpoint.lease),
        step=checkpoint.step,
        node=part.node,
        nodes=len(checkpoint.parts),
    )


async def _put_part(
    client: RelayClient,
    store: CoordinatorStore | PathStore,
    key: FolderKey,
    checkpoint: pb.Checkpoint,
    part: pb.CheckpointPart,
    bars: StartProgress,
) -> bool:
    """Copy and register one part; return whether it had to be sent. A copy that is there already is left as it is."""
    digest = part.manifest_digest
    uri = f"{OWN}{digest}" if isinstance(store, CoordinatorStore) else store.uri_of(key)
    there = await store.has(uri, digest)
    if not there:
        with tempfile.TemporaryDirectory(prefix="relay-push-") as name:
            folder = Path(name)
            content = await fetch_part(client, part, folder, bars("fetching", part.size))
            await store.put(key, content, lambda file: folder / file.path, bars("sending", part.size))
    await client.add_copy(checkpoint.name, part.node, digest, pb.Copy(store=store.scheme, uri=uri))
    return not there


@asynccontextmanager
async def _keep_meanwhile(
    client: RelayClient, checkpoint: pb.Checkpoint, reason: str, *, pin: bool
) -> AsyncIterator[str]:
    """Pin a checkpoint before its first byte is read, lest it be deleted meanwhile; unpin it when the push fails.

    Provides the sentence that says for how long the checkpoint is kept.
    """
    if checkpoint.pinned:
        yield "it is kept: it was pinned before" + (f" ({checkpoint.pin_reason})" if checkpoint.pin_reason else "")
        return
    if not pin:
        yield "it is kept for as long as the run file says"
        return
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.unpin_checkpoint, checkpoint.name)
        await client.pin_checkpoint(checkpoint.name, reason)
        run = checkpoint.name.split("/")[1]
        yield f"it is pinned, until: relayctl checkpoints unpin {run}@{checkpoint.step}"
        stack.pop_all()


@contextmanager
def name_store_in_errors(to: str) -> Iterator[None]:
    """Raise a store's failures as SendFailed, with the store's URI in the message."""
    try:
        yield
    except StoreUnavailable as error:
        raise SendFailed(f"{to} cannot be reached; try again later: {error}") from error
    except StoreRefused as error:
        raise SendFailed(f"{to} does not take it: {error}") from error

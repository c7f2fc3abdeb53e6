"""Fetching checkpoints and results from wherever they lie: the coordinator's store, or another that can be reached.

A part of a checkpoint has a copy in each store that it was published to; it is fetched from the first that is sound.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from relay.errors import RelayError
from relay.v1 import runs_pb2 as pb
from relayctl.client.artifacts import PullFailed
from relayctl.client.client import RelayClient
from storage.base import DamagedCopy, Progress, Store, StoreRefused, StoreUnavailable, ignore_progress
from storage.hub.store import CommitRateLimit, HubStore
from storage.hub.worker import HubWorker
from storage.manifest import MANIFEST_FILE, Manifest
from storage.stores import StoresByScheme

HOST, RELAY = "host", "relay"  #: the stores of copies on an agent's disk and in the coordinator's store


def open_readers() -> StoresByScheme:
    """Return readers of every store that this machine reaches with the credentials in its own environment."""
    hub: Store = HubStore(HubWorker(sys.executable, os.environ), "", commit_limit=CommitRateLimit(), now=time.monotonic)
    return StoresByScheme({"hf": hub})


def get_reader(readers: StoresByScheme, store: str) -> Store:
    """Return the reader of a store by its scheme; raises StoreRefused when this machine cannot read it."""
    reader = readers.get(store)
    if reader is None:
        raise StoreRefused(f"{store}:// cannot be read here")
    return reader


def list_fetchable_copies(part: pb.CheckpointPart) -> list[pb.Copy]:
    """Return the kept copies of a part that this machine may reach, the one in the coordinator's store first."""
    kept = [copy for copy in part.copies if copy.store != HOST and not copy.HasField("remove_time")]
    return sorted(kept, key=lambda copy: copy.store != RELAY)


async def fetch_part(client: RelayClient, part: pb.CheckpointPart, folder: Path, progress: Progress) -> Manifest:
    """Fetch one node's part of a checkpoint from the first sound copy; PullFailed says what is wrong with each."""
    readers, reasons = open_readers(), []
    for copy in list_fetchable_copies(part):
        try:
            return await fetch_copy(client, readers, copy, part.manifest_digest, folder, progress)
        except (PullFailed, RelayError, DamagedCopy, StoreUnavailable, StoreRefused) as error:
            reasons.append(f"{copy.uri}: {error}")
    if reasons:
        raise PullFailed("it cannot be fetched: " + "; ".join(reasons))
    hosts = [copy.uri.removeprefix("host://") for copy in part.copies if copy.store == HOST]
    where = f"it lies on {' and '.join(hosts)} only" if hosts else "no copy of it is left"
    raise PullFailed(f"it cannot be fetched: {where}")


async def fetch_copy(
    client: RelayClient, readers: StoresByScheme, copy: pb.Copy, digest: str, folder: Path, progress: Progress
) -> Manifest:
    """Fetch one copy into a folder, every byte verified, and return its manifest, which is not left in the folder."""
    if copy.store == RELAY:
        return await _fetch_blobs(client, digest, folder, progress)
    content = await get_reader(readers, copy.store).fetch(copy.uri, digest, folder, progress)
    await asyncio.to_thread((folder / MANIFEST_FILE).unlink)
    return content


async def _fetch_blobs(client: RelayClient, digest: str, folder: Path, progress: Progress) -> Manifest:
    content = await client.artifacts.read_manifest(digest)
    await client.artifacts.pull(content, folder, progress)
    return content


async def fetch_result(
    client: RelayClient, output: pb.Output, folder: Path, progress: Progress = ignore_progress
) -> Manifest:
    """Fetch a run's result into a folder, every byte verified, and return its manifest."""
    if not output.uri:
        return await _fetch_blobs(client, output.manifest_digest, folder, progress)
    await require_free(folder)
    copy = pb.Copy(store=output.uri.partition("://")[0], uri=output.uri)
    try:
        return await fetch_copy(client, open_readers(), copy, output.manifest_digest, folder, progress)
    except (StoreUnavailable, StoreRefused, DamagedCopy) as error:
        raise PullFailed(f"the result in {output.uri} cannot be fetched: {error}") from error


async def require_free(folder: Path) -> None:
    """Raise PullFailed for a folder that has a manifest, for a store's reader would write its own over it."""
    if await asyncio.to_thread((folder / MANIFEST_FILE).exists):
        raise PullFailed(f"{folder / MANIFEST_FILE} is in the way: pull into another folder")

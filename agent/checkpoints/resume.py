"""Which checkpoint an attempt goes on from: the newest whose every byte is there and right.

The host's own copy is tried first, then the stores. What is damaged or gone is passed over with the reason, which the
run's history keeps; a store that is away is waited for.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.manifest import NAME, Manifest, ManifestError, verify
from relay.stores.base import Damaged, Store, StoreRefused
from relay.v1 import runs_pb2

Skipped = runs_pb2.SkippedCheckpoint


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to go on; `folder` is None for a beginning."""

    folder: Path | None
    checkpoint: str
    step: int
    skipped: tuple[Skipped, ...]


async def choose(
    checkpoints: Sequence[runs_pb2.Checkpoint],
    node: int,
    *,
    here: Callable[[runs_pb2.Checkpoint], Path],
    stores: Mapping[str, Store],
    scratch: Path,
) -> Resume:
    """The newest sound one of `checkpoints` (newest first).

    `here` says where this host would have its own copy, `scratch` is where others are brought to. Raises OSError when
    this host's disk fails.
    """
    skipped: list[Skipped] = []
    for checkpoint in checkpoints:
        part = next((part for part in checkpoint.parts if part.node == node), None)
        if part is None:
            skipped.append(_skip(checkpoint, [f"node {node} has no part of it"]))
            continue
        reasons: list[str] = []
        if (folder := await _own(part, here(checkpoint), reasons)) is None:
            folder = await _fetched(part, stores, scratch / f"step_{checkpoint.step:08d}", reasons)
        if folder is not None:
            return Resume(folder, checkpoint.name, checkpoint.step, tuple(skipped))
        skipped.append(_skip(checkpoint, reasons or ["no copy of it can be reached from this host"]))
    return Resume(None, "", 0, tuple(skipped))


def _skip(checkpoint: runs_pb2.Checkpoint, reasons: Sequence[str]) -> Skipped:
    return Skipped(checkpoint=checkpoint.name, step=checkpoint.step, reason="; ".join(reasons))


async def _own(part: runs_pb2.CheckpointPart, folder: Path, reasons: list[str]) -> Path | None:
    """This host's own copy, when it has one and that is sound."""
    if not await asyncio.to_thread(folder.is_dir):
        return None
    wrong = await asyncio.to_thread(what_is_wrong, folder, part.manifest_digest)
    if wrong is None:
        return folder
    reasons.append(f"this host's copy: {wrong}")
    return None


async def _fetched(
    part: runs_pb2.CheckpointPart, stores: Mapping[str, Store], folder: Path, reasons: list[str]
) -> Path | None:
    for copy in part.copies:
        store = stores.get(copy.store)
        if store is None:
            continue
        try:
            await store.fetch(copy.uri, part.manifest_digest, folder)
            return folder
        except (Damaged, StoreRefused) as error:
            reasons.append(f"the copy in {copy.store}://: {error}")
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return None


def what_is_wrong(folder: Path, manifest_digest: str) -> str | None:
    """Why a sealed folder cannot be used, in words; None when every byte is right. Blocking."""
    try:
        manifest = Manifest.from_bytes((folder / NAME).read_bytes())
    except (OSError, ManifestError) as error:
        return f"its manifest cannot be read: {error}"
    if manifest.digest != manifest_digest:
        return "its manifest is another one than was registered"
    return verify(folder, manifest)

"""Chooses the checkpoint that an attempt resumes from: the newest of which every byte is there and right.

The host's own copy is tried first, then the stores. What is damaged or gone is skipped with the reason, which the run's
history keeps; a store that is away is waited for, unless another one has a copy. Copies that were found damaged are
replaced by the one that was sound.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.events.journal import Journal
from agent.stores.retry import StoreRetry
from relay.errors import RelayError
from relay.v1 import runs_pb2
from storage.base import DamagedCopy, Progress, RepairableStore, Store, StoreRefused, StoreUnavailable
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, find_damage

Skipped = runs_pb2.SkippedCheckpoint


class StoresUnreachable(Exception):
    """The stores that may have a checkpoint are away for too long."""


#: Seconds that a store may be away before the run is granted elsewhere, where it may be reached.
UNREACHABLE_AFTER = 900.0


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where to resume; `folder` is None when the run starts from the beginning."""

    folder: Path | None
    checkpoint: str
    step: int
    skipped: tuple[Skipped, ...]
    part: runs_pb2.CheckpointPart = field(default_factory=runs_pb2.CheckpointPart)
    damage: tuple[str, ...] = ()  #: what was wrong with copies of the chosen checkpoint


async def choose_checkpoint(
    checkpoints: Sequence[runs_pb2.Checkpoint],
    node: int,
    *,
    host: str,
    here: Callable[[runs_pb2.Checkpoint], Path],
    stores: Mapping[str, Store],
    scratch: Path,
    retry: StoreRetry,
) -> ResumePoint:
    """Return the newest sound checkpoint of `checkpoints` (newest first).

    `host` is the uri of copies on this host's own disk, and `here` says where those lie: one that is not listed may be
    under deletion. `scratch` is the folder for downloads. Raises OSError when this host's disk fails, StoresUnreachable
    when the only copies there are cannot be reached for long.
    """
    skipped: list[Skipped] = []
    for checkpoint in checkpoints:
        part = next((part for part in checkpoint.parts if part.node == node), None)
        if part is None:
            skipped.append(_make_skipped(checkpoint, [f"node {node} has no part of it"]))
            continue
        reasons: list[str] = []
        offered = any(copy.uri == host for copy in part.copies)
        if (folder := await _verify_local(part, here(checkpoint), reasons) if offered else None) is None:
            folder = await _fetch_with_retry(retry, part, stores, scratch / f"step_{checkpoint.step:08d}", reasons)
        if folder is not None:
            return ResumePoint(folder, checkpoint.name, checkpoint.step, tuple(skipped), part, tuple(reasons))
        skipped.append(_make_skipped(checkpoint, reasons or ["no copy of it can be reached from this host"]))
    return ResumePoint(None, "", 0, tuple(skipped))


async def _fetch_with_retry(
    retry: StoreRetry, part: runs_pb2.CheckpointPart, stores: Mapping[str, Store], folder: Path, reasons: list[str]
) -> Path | None:
    """Download a copy, and wait for stores that are away.

    Raises StoresUnreachable when none has delivered a byte for too long.
    """
    moved = retry.now()

    def move(_: int) -> None:
        nonlocal moved
        moved = retry.now()

    async def fetch() -> Path | None:
        try:
            return await _fetch_copy(part, stores, folder, reasons, move)
        except StoreUnavailable as away:
            if retry.now() - moved < UNREACHABLE_AFTER:
                raise
            raise StoresUnreachable(f"{folder.name} cannot be reached from this host: {away}") from away

    return await retry.run(f"the download of {folder.name}", fetch)


def _make_skipped(checkpoint: runs_pb2.Checkpoint, reasons: Sequence[str]) -> Skipped:
    return Skipped(checkpoint=checkpoint.name, step=checkpoint.step, reason="; ".join(reasons))


async def _verify_local(part: runs_pb2.CheckpointPart, folder: Path, reasons: list[str]) -> Path | None:
    """Return this host's own copy, when it has one and that is sound."""
    if not await asyncio.to_thread(folder.is_dir):
        return None
    wrong = await asyncio.to_thread(inspect_folder, folder, part.manifest_digest)
    if wrong is None:
        return folder
    reasons.append(f"this host's copy: {wrong}")
    return None


async def _fetch_copy(
    part: runs_pb2.CheckpointPart, stores: Mapping[str, Store], folder: Path, reasons: list[str], progress: Progress
) -> Path | None:
    """Download from the first store with a sound copy. Raises StoreUnavailable when one that may have it is away."""
    away: StoreUnavailable | None = None
    for copy in part.copies:
        if (store := stores.get(copy.store)) is None:
            continue
        try:
            await store.fetch(copy.uri, part.manifest_digest, folder, progress)
            return folder
        except (DamagedCopy, StoreRefused) as error:
            if (reason := f"the copy in {copy.store}://: {error}") not in reasons:
                reasons.append(reason)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        except StoreUnavailable as error:
            away = error
    if away is not None:
        raise away
    return None


async def repair_copies(chosen: ResumePoint, stores: Mapping[str, Store], journal: Journal) -> None:
    """Record what was wrong with the checkpoint's copies, and replace those in stores that are damaged or gone."""
    if chosen.folder is None:
        return
    for reason in chosen.damage:
        await journal.record("warning", f"the checkpoint of step {chosen.step} has a damaged copy: {reason}")
    for copy in chosen.part.copies:
        mender: object = stores.get(copy.store)
        if isinstance(mender, RepairableStore):
            what = f"the copy of step {chosen.step} in {copy.store}://"
            try:
                if await _is_wrong(copy, stores[copy.store], chosen):
                    await _repair(copy, mender, chosen.folder)
                    await journal.record("info", f"{what} is right again")
            except (DamagedCopy, StoreUnavailable, StoreRefused, RelayError, ManifestError, OSError) as error:
                await journal.record("warning", f"{what} stays as it is: {error}")


async def _is_wrong(copy: runs_pb2.Copy, store: Store, chosen: ResumePoint) -> bool:
    found = any(reason.startswith(f"the copy in {copy.store}://") for reason in chosen.damage)
    return found or not await store.has(copy.uri, chosen.part.manifest_digest)


async def _repair(copy: runs_pb2.Copy, mender: RepairableStore, folder: Path) -> None:
    manifest = Manifest.from_bytes(await asyncio.to_thread((folder / MANIFEST_FILE).read_bytes))
    await mender.repair(copy.uri, manifest, lambda file: folder / file.path)


def inspect_folder(folder: Path, manifest_digest: str) -> str | None:
    """Return in words why a sealed folder cannot be used; None when every byte is right. Blocking."""
    try:
        manifest = Manifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ManifestError) as error:
        return f"its manifest cannot be read: {error}"
    if manifest.digest != manifest_digest:
        return "its manifest is another one than was registered"
    return find_damage(folder, manifest)

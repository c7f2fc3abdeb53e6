"""The files that are uploaded with a run: fetched once per host, kept by digest, copied for each trainer.

Trainers get copies: nothing that they write can reach the cache, which other runs on the host use.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from agent.stores.blobs import BlobClient
from relay.v1 import runs_pb2
from storage.manifest import check_path, hash_file


class InputCache:
    """Files by digest in one folder; the least recently used ones are deleted above `limit` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._used: Counter[str] = Counter()  #: digests that are being copied now
        self._trimming = asyncio.Lock()

    async def place_inputs(self, blobs: BlobClient, inputs: Sequence[runs_pb2.Input], work: Path) -> None:
        """Put every input under its path in `work`.

        Raises ManifestError for a path that leads out of it, DamagedCopy when the store does not have one, OSError when
        the disk fails.
        """
        for each in inputs:
            check_path(each.path)
        mine = Counter({each.digest for each in inputs})
        self._used += mine
        try:
            for each in inputs:
                cached = await self._fetch(blobs, each.digest)
                await asyncio.to_thread(_copy, cached, work / each.path, each.executable)
            async with self._trimming:
                await asyncio.to_thread(self._trim, set(self._used))
        finally:
            self._used -= mine

    async def _fetch(self, blobs: BlobClient, digest: str) -> Path:
        path = self._folder / digest.removeprefix("sha256:")
        async with self._fetching.setdefault(digest, asyncio.Lock()):
            if not await asyncio.to_thread(_is_sound, path, digest):
                await blobs.get(digest, path)
        return path

    def _trim(self, needed: set[str]) -> None:
        """Keep the newest up to the limit; what a run that is being set up needs stays in any case."""
        kept = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        files = [(path, path.stat()) for path in self._folder.iterdir() if path.suffix != ".part"]
        for path, status in sorted(files, key=lambda file: file[1].st_atime_ns, reverse=True):
            kept += status.st_size
            if kept > self._limit and f"sha256:{path.name}" not in needed:
                path.unlink()


def _is_sound(path: Path, digest: str) -> bool:
    """Return whether a cached file has its digest: a disk that rots must not decide what is trained."""
    if not path.is_file():
        return False
    if hash_file(path)[0] == digest:
        os.utime(path)
        return True
    path.unlink()
    return False


def _copy(source: Path, target: Path, executable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if executable else 0o644)

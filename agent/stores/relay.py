"""`relay://`: the coordinator's own content-addressed store. The default; needs no cloud."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

from agent.stores.blobs import Blobs
from relay.manifest import NAME, Manifest, ManifestError, ManifestFile
from relay.stores.base import Damaged, Place, Progress, Where, untold

T = TypeVar("T")

STREAMS = 4  #: files on their way at once


class RelayStore:
    """Folders as blobs: one per file, and the manifest, which comes last and makes the folder whole.

    Every method waits out a coordinator that is away, and raises the RelayError that it answers with.
    """

    scheme = "relay"

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def put(self, place: Place, manifest: Manifest, where: Where, progress: Progress = untold) -> str:
        """Blobs know no place: equal bytes are kept once, whoever brought them."""
        missing = await self._blobs.missing(file.digest for file in manifest.files)
        wanted = {file.digest: where(file) for file in manifest.files if file.digest in missing}
        await _each(wanted.items(), lambda item: self._blobs.put(item[1], item[0]))
        await self._blobs.put(manifest.to_bytes(), manifest.digest)
        progress(manifest.size)
        return f"relay://{manifest.digest}"

    async def has(self, uri: str, digest: str) -> bool:
        return not await self._blobs.missing([digest])

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = untold) -> Manifest:
        manifest = await self._manifest(digest, folder)
        wanted = [file for file in manifest.files if not await asyncio.to_thread(_is_here, folder, file)]
        await _each(wanted, lambda file: self._blobs.get(file.digest, folder / file.path, executable=file.executable))
        progress(manifest.size)
        return manifest

    async def remove(self, uri: str) -> None:
        """The coordinator frees what no row names any more."""

    async def _manifest(self, digest: str, folder: Path) -> Manifest:
        await self._blobs.get(digest, folder / NAME)
        try:
            return Manifest.from_bytes(await asyncio.to_thread((folder / NAME).read_bytes))
        except ManifestError as error:
            raise Damaged(str(error)) from error


def _is_here(folder: Path, file: ManifestFile) -> bool:
    """Files get their names only when they have been verified."""
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size


async def _each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """`work` on every item, a few at a time. The first failure stops the others and is raised as it is."""
    gate = asyncio.Semaphore(STREAMS)

    async def one(item: T) -> None:
        async with gate:
            await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

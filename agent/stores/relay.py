"""`relay://`: the coordinator's own content-addressed store. The default; needs no cloud."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

from agent.stores.base import Damaged
from agent.stores.blobs import Blobs
from relay.manifest import NAME, Manifest, ManifestError, ManifestFile

T = TypeVar("T")

STREAMS = 4  #: files on their way at once


class RelayStore:
    """Folders as blobs: one per file, and the manifest, which comes last and makes the folder whole."""

    scheme = "relay"

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def uri(self, manifest_digest: str) -> str:
        return f"relay://{manifest_digest}"

    async def has(self, manifest_digest: str) -> bool:
        return not await self._blobs.missing([manifest_digest])

    async def put_folder(self, folder: Path, manifest: Manifest) -> str:
        return await self.put_files(manifest, lambda file: folder / file.path, folder / NAME)

    async def put_files(self, manifest: Manifest, where: Callable[[ManifestFile], Path], written: Path) -> str:
        """Store files that lie anywhere: `where` says where each does, `written` where the manifest itself does."""
        missing = await self._blobs.missing(file.digest for file in manifest.files)
        wanted = {file.digest: where(file) for file in manifest.files if file.digest in missing}
        await _each(wanted.items(), lambda item: self._blobs.put(item[1], item[0]))
        await self._blobs.put(written, manifest.digest)
        return self.uri(manifest.digest)

    async def fetch(self, manifest_digest: str, folder: Path) -> Manifest:
        manifest = await self._manifest(manifest_digest, folder)
        wanted = [file for file in manifest.files if not await asyncio.to_thread(_is_here, folder, file)]
        await _each(wanted, lambda file: self._blobs.get(file.digest, folder / file.path, executable=file.executable))
        return manifest

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

"""`relay://`: the coordinator's own content-addressed store. The default; needs no cloud."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.stores.blobs import BlobClient
from storage.base import DamagedCopy, FolderKey, LocateFile, Progress, ignore_progress
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, ManifestFile
from storage.throttling import for_each_limited

STREAMS = 4  #: files that are sent at once


class RelayStore:
    """Folders as blobs: one per file, and the manifest, which is uploaded last and makes the folder whole.

    Every method waits out a coordinator that is away, and raises the RelayError that it answers with.
    """

    scheme = "relay"

    def __init__(self, blobs: BlobClient) -> None:
        self._blobs = blobs

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        """Upload a folder. Blobs have no place: equal bytes are kept once, whoever uploaded them."""
        uri = f"relay://{manifest.digest}"
        await self.repair(uri, manifest, locate, progress)
        return uri

    async def repair(
        self, uri: str, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> None:
        """Upload what is missing; a blob that was found damaged counts as missing."""
        missing = await self._blobs.find_missing(file.digest for file in manifest.files)

        async def bring(file: ManifestFile) -> None:
            if file.digest in missing:
                await self._blobs.put(locate(file), file.digest)
            progress(file.size)

        await for_each_limited({file.digest: file for file in manifest.files}.values(), bring, STREAMS)
        await self._blobs.put(manifest.to_bytes(), manifest.digest)
        progress(manifest.size - sum({file.digest: file.size for file in manifest.files}.values()))

    async def has(self, uri: str, digest: str) -> bool:
        return not await self._blobs.find_missing([digest])

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = ignore_progress) -> Manifest:
        manifest = await self._manifest(digest, folder)
        wanted = [file for file in manifest.files if not await asyncio.to_thread(_is_present, folder, file)]
        await for_each_limited(
            wanted,
            lambda file: self._blobs.get(file.digest, folder / file.path, executable=file.executable),
            STREAMS,
        )
        progress(manifest.size)
        return manifest

    async def remove(self, uri: str) -> None:
        """Do nothing: the coordinator frees what no row names any more."""

    async def _manifest(self, digest: str, folder: Path) -> Manifest:
        await self._blobs.get(digest, folder / MANIFEST_FILE)
        try:
            return Manifest.from_bytes(await asyncio.to_thread((folder / MANIFEST_FILE).read_bytes))
        except ManifestError as error:
            raise DamagedCopy(str(error)) from error


def _is_present(folder: Path, file: ManifestFile) -> bool:
    """Return whether a file is there: it has its name only once it was verified."""
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size

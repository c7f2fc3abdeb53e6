"""A store of checkpoints in memory, with the interface that agents know."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from relay.errors import DigestMismatch
from storage.base import DamagedCopy, FolderKey, LocateFile, Progress, ignore_progress
from storage.manifest import MANIFEST_FILE, Manifest, find_damage


@dataclass(slots=True)
class FolderStore:
    """Folders by the digest of their manifest. While `away` is set, every access fails."""

    random: Random
    folders: dict[str, dict[str, bytes]] = field(default_factory=dict)
    back: asyncio.Event = field(default_factory=asyncio.Event)
    scheme: str = "relay"

    def __post_init__(self) -> None:
        self.back.set()

    async def _transfer(self) -> None:
        await self.back.wait()
        await asyncio.sleep(self.random.uniform(0.0, 0.3))
        await self.back.wait()

    def lose_newest(self) -> None:
        """Delete what was put last."""
        if self.folders:
            self.folders.popitem()

    async def has(self, uri: str, digest: str) -> bool:
        await self._transfer()
        return digest in self.folders

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        files = {file.path: locate(file) for file in manifest.files}
        await self._transfer()
        self.folders[manifest.digest] = _read(manifest, files)
        return f"relay://{manifest.digest}"

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = ignore_progress) -> Manifest:
        await self._transfer()
        files = self.folders.get(digest)
        if files is None:
            raise DamagedCopy("it is not in the store")
        _write(folder, files)
        manifest = Manifest.from_bytes(files[MANIFEST_FILE])
        if (wrong := find_damage(folder, manifest)) is not None:
            raise DamagedCopy(wrong)
        return manifest

    async def remove(self, uri: str) -> None:
        await self._transfer()


def _read(manifest: Manifest, files: dict[str, Path]) -> dict[str, bytes]:
    """As a store takes them: by their digests."""
    found = {path: place.read_bytes() for path, place in files.items()}
    for file in manifest.files:
        if f"sha256:{hashlib.sha256(found[file.path]).hexdigest()}" != file.digest:
            raise DigestMismatch(f"{file.path} is not what its manifest says")
    return found | {MANIFEST_FILE: manifest.to_bytes()}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, data in files.items():
        (folder / path).write_bytes(data)

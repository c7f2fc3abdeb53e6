"""What every store can do. `relay://` is built; `file://`, `s3://` and `hf://` have the same face."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from relay.manifest import Manifest, ManifestFile


class Damaged(Exception):
    """A store's bytes are gone or are not what the manifest says: another copy has to do."""


class Store(Protocol):
    """Folders by the digest of their manifest. Written once, never changed.

    Every method waits out a store that is away and raises only what waiting cannot help.
    """

    @property
    def scheme(self) -> str:
        """E.g. `relay`; names the store in the registry."""

    def uri(self, manifest_digest: str) -> str:
        """Where a folder is, once it is there."""

    async def has(self, manifest_digest: str) -> bool:
        """Whether the whole folder is there."""

    async def put_folder(self, folder: Path, manifest: Manifest) -> str:
        """Store what is missing of a folder that has its manifest in it; returns its uri.

        Raises OSError when the folder's files cannot be read, RelayError when the store has no room.
        """

    async def put_files(self, manifest: Manifest, where: Callable[[ManifestFile], Path], written: Path) -> str:
        """Like `put_folder` for files that lie anywhere: `where` says where, `written` is the manifest's own file."""

    async def fetch(self, manifest_digest: str, folder: Path) -> Manifest:
        """Bring a folder here, every byte verified; goes on with what an earlier fetch left. Raises Damaged."""

"""Files on their way here: a part that grows beside its name, then the file, every byte verified. Blocking."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from storage.base import Damaged
from storage.manifest import NAME, Manifest, ManifestError, ManifestFile

_READ = 1024 * 1024
_PART = ".relay-part-"


def read_manifest(data: bytes, digest: str) -> Manifest:
    """A manifest that a store gave; Damaged when it is not the one of this digest."""
    try:
        manifest = Manifest.from_bytes(data)
    except ManifestError as error:
        raise Damaged(f"its manifest is damaged: {error}") from error
    if manifest.digest != digest:
        raise Damaged("its manifest is another one than was registered")
    if any(file.path == NAME or file.path.rpartition("/")[2].startswith(_PART) for file in manifest.files):
        raise Damaged("its manifest names files that no folder has")
    return manifest


def keep_manifest(folder: Path, manifest: Manifest) -> None:
    """Last, when all its files are here."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{_PART}manifest"
    part.write_bytes(manifest.to_bytes())
    part.replace(folder / NAME)


def is_here(folder: Path, file: ManifestFile) -> bool:
    """Whether an earlier try has brought it: files get their names only when they have been verified."""
    path = folder / file.path
    return path.is_file() and not path.is_symlink() and path.stat().st_size == file.size


class Arriving:
    """`with Arriving(folder, file) as arriving:` takes bytes from `arriving.offset` on, and `settle` names the file."""

    def __init__(self, folder: Path, file: ManifestFile) -> None:
        self._file = file
        self._path = folder / file.path
        tag = hashlib.sha256(f"{file.path}\0{file.digest}".encode()).hexdigest()[:24]
        self._part = folder / f"{_PART}{tag}"
        self._hash = hashlib.sha256()
        self.offset = 0
        self._io: IO[bytes]

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._io = self._part.open("a+b", buffering=0)
        self._io.seek(0)
        while chunk := self._io.read(_READ):
            self._hash.update(chunk)
            self.offset += len(chunk)
        if self.offset > self._file.size:
            self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._io.close()

    def restart(self) -> None:
        """What is here of it was wrong."""
        self._io.truncate(0)
        self._hash, self.offset = hashlib.sha256(), 0

    def take(self, chunk: bytes | memoryview) -> None:
        """The next bytes. Raises OSError when they do not fit on this disk."""
        view = memoryview(chunk)
        self._hash.update(view)
        while view:
            view = view[self._io.write(view) :]
        self.offset += len(chunk)

    @property
    def right(self) -> bool:
        """Whether all is here and is what the manifest says."""
        return self.offset == self._file.size and f"sha256:{self._hash.hexdigest()}" == self._file.digest

    def settle(self) -> None:
        """Give it its name. Raises Damaged, and keeps nothing, when its bytes are wrong."""
        if not self.right:
            self._part.unlink()
            raise Damaged(f"{self._file.path} does not match its digest")
        os.fsync(self._io.fileno())
        self._part.chmod(0o755 if self._file.executable else 0o644)
        self._part.replace(self._path)

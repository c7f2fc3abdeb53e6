"""Downloads of files: bytes are appended to a partial file, which is renamed when it is verified. Blocking."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from storage.base import DamagedCopy
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, ManifestFile

_READ = 1024 * 1024
_PART = ".relay-part-"


def parse_manifest(data: bytes, digest: str) -> Manifest:
    """Return the manifest that a store sent. Raises DamagedCopy when it does not have this digest."""
    try:
        manifest = Manifest.from_bytes(data)
    except ManifestError as error:
        raise DamagedCopy(f"its manifest is damaged: {error}") from error
    if manifest.digest != digest:
        raise DamagedCopy("its manifest is another one than was registered")
    if any(file.path == MANIFEST_FILE or file.path.rpartition("/")[2].startswith(_PART) for file in manifest.files):
        raise DamagedCopy("its manifest names files that no folder has")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, which must have all its files."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{_PART}manifest"
    part.write_bytes(manifest.to_bytes())
    part.replace(folder / MANIFEST_FILE)


def is_fetched(folder: Path, file: ManifestFile) -> bool:
    """Return whether a file is here whole: a file gets its name only when it has been verified."""
    path = folder / file.path
    return path.is_file() and not path.is_symlink() and path.stat().st_size == file.size


class PartialFile:
    """A file that is being downloaded. An interrupted download is resumed at `offset`.

    `with PartialFile(folder, file) as part:` appends with `part.write`; `part.finish` gives the file its name.
    """

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
        """Discard the bytes that are here, because they are wrong."""
        self._io.truncate(0)
        self._hash, self.offset = hashlib.sha256(), 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Append the next bytes. Raises OSError when they do not fit on this disk."""
        view = memoryview(chunk)
        self._hash.update(view)
        while view:
            view = view[self._io.write(view) :]
        self.offset += len(chunk)

    @property
    def is_correct(self) -> bool:
        """Whether all bytes are here and match the manifest."""
        return self.offset == self._file.size and f"sha256:{self._hash.hexdigest()}" == self._file.digest

    def finish(self) -> None:
        """Give the file its name. Raises DamagedCopy, and removes the file, when its bytes are wrong."""
        if not self.is_correct:
            self._part.unlink()
            raise DamagedCopy(f"{self._file.path} does not match its digest")
        os.fsync(self._io.fileno())
        self._part.chmod(0o755 if self._file.executable else 0o644)
        self._part.replace(self._path)

"""Manifests: every file of a folder with its size and digest, as one small JSON document.

A checkpoint, a result and an uploaded folder are each named by the digest of their manifest, so two folders with the
same bytes have the same name wherever they lie. Digests read `sha256:<64 hex digits>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST_FILE = "manifest.json"  #: a manifest lies in its own folder under this name and does not list itself
MAX_FILES = 100_000
MAX_BYTES = 64 * 1024 * 1024  #: of a manifest itself
DIGEST_PATTERN = re.compile(r"^sha256:[0-9a-f]{64}$")
_READ = 1024 * 1024


class ManifestError(ValueError):
    """A manifest is malformed, or a folder cannot have one."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: its POSIX path inside the folder, its size in bytes, its digest."""

    path: str
    size: int
    digest: str
    executable: bool = False

    def __post_init__(self) -> None:
        check_path(self.path)
        if not DIGEST_PATTERN.match(self.digest):
            raise ManifestError(f"{self.path}: {self.digest!r} is not a digest like sha256:<64 hex digits>")
        if self.size < 0:
            raise ManifestError(f"{self.path}: a size of {self.size} bytes")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a folder, sorted by path; a checkpoint's manifest also has its step and metrics."""

    files: tuple[ManifestFile, ...]
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    version: int = 1

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ManifestError("a path stands in the manifest twice")
        if len(paths) > MAX_FILES:
            raise ManifestError(f"{len(paths)} files, more than {MAX_FILES}")

    @property
    def size(self) -> int:
        """The total size of all files in bytes."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """The digest of the canonical form, which names the content."""
        return digest_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the canonical form, of which the digest is taken."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read what `to_bytes` wrote. Raises ManifestError for anything else."""
        if len(data) > MAX_BYTES:
            raise ManifestError(f"a manifest of {len(data)} bytes, more than {MAX_BYTES}")
        try:
            raw: dict[str, Any] = json.loads(data)
            files = tuple(ManifestFile(**file) for file in raw.pop("files"))
            return cls(files, **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ManifestError(f"not a manifest: {error}") from error


def check_path(path: str) -> None:
    """Raise ManifestError unless `path` is relative, normalized and stays inside its folder (R7)."""
    pure = PurePosixPath(path)
    if (
        not path
        or "\0" in path
        or "\\" in path
        or pure.is_absolute()
        or ".." in pure.parts
        or str(pure) != path
        or path == "."
    ):
        raise ManifestError(f"{path!r} is not a plain path inside the folder")


def digest_bytes(data: bytes) -> str:
    """Return the digest of bytes in memory."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> tuple[str, int]:
    """Return the digest and the size of a file. Blocking: call it in a thread."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_READ):
            digest.update(chunk)
            size += len(chunk)
    return "sha256:" + digest.hexdigest(), size


def list_files(folder: Path) -> list[Path]:
    """Return all files below `folder` but its manifest, sorted. Raises ManifestError for links and devices (R7)."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ManifestError(
                    f"{path.relative_to(folder)}: only plain files and folders are taken, no links or devices"
                )
        found += [Path(parent, name) for name in names]
    return sorted(path for path in found if path != folder / MANIFEST_FILE)


def describe_folder(folder: Path, *, step: int | None = None, metrics: dict[str, float] | None = None) -> Manifest:
    """Return the manifest of a folder as it is now. Reads every byte: call it in a thread."""

    def one(path: Path) -> ManifestFile:
        digest, size = hash_file(path)
        return ManifestFile(path.relative_to(folder).as_posix(), size, digest, os.access(path, os.X_OK))

    return Manifest(tuple(one(path) for path in list_files(folder)), step, metrics or {})


def find_damage(folder: Path, manifest: Manifest) -> str | None:
    """Return what is wrong with a folder's bytes, in words, or None when they match the manifest. Blocking."""
    for file in manifest.files:
        path = folder / file.path
        if path.is_symlink() or not path.is_file():
            return f"{file.path} is missing"
        if (size := path.stat().st_size) != file.size:
            return f"{file.path} has {size} bytes instead of {file.size}"
        if hash_file(path)[0] != file.digest:
            return f"{file.path} does not match its digest"
    return None

"""A run's result: which files it is, as a manifest. Reads every byte: call it in a thread."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from storage.manifest import Manifest, ManifestFile, hash_file, list_files


def whole_folder(folder: Path) -> dict[str, Path]:
    """All files of the output folder; ManifestError for links and devices."""
    paths = list_files(folder) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path for path in paths}


def matching(cwd: Path, patterns: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The files that patterns relative to `cwd` name, and the patterns that match nothing.

    Links that lead out of `cwd` are not followed (R7).
    """
    inside = cwd.resolve()
    found: dict[str, Path] = {}
    empty = []
    for pattern in patterns:
        paths = [cwd / name for name in glob.glob(pattern, root_dir=cwd, recursive=True, include_hidden=True)]
        files = [path for path in paths if path.is_file() and path.resolve().is_relative_to(inside)]
        found |= {path.relative_to(cwd).as_posix(): path for path in files}
        if not files:
            empty.append(pattern)
    return found, empty


def manifest_of(files: dict[str, Path]) -> Manifest:
    """The manifest of files that lie anywhere, under the paths they are to have."""
    return Manifest(
        tuple(
            ManifestFile(name, size, digest, os.access(path, os.X_OK))
            for name, path in sorted(files.items())
            for digest, size in [hash_file(path)]
        )
    )

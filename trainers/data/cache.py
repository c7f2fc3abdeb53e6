"""What this host keeps from one attempt to the next: folders, each named by a hash of what it holds."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainers.errors import HostError

CACHE_VARIABLE = "RELAY_DATA_CACHE"  #: the variable with the folder of the cache
UNUSED_SECONDS, DRAFT_SECONDS = 30 * 24 * 3600, 24 * 3600  #: the age at which entries, and drafts, are removed
_DRAFT_PREFIX = ".tmp-"


def entry_folder(*what: Any) -> Path:
    """Return the folder for what these JSON values describe, whether it exists or not. The call counts as a
    use of it.
    """
    folder = _cache_root() / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    with suppress(FileNotFoundError):
        os.utime(folder)
    return folder


@contextmanager
def new_entry(folder: Path) -> Iterator[Path]:
    """Provide a draft folder that becomes `folder` on success, unless another process was first. Entries that have not
    been used for long are removed. Raises HostError when this host's disk fails, where the writer uses `disk_errors`.
    """
    draft = folder.with_name(f"{_DRAFT_PREFIX}{uuid4().hex}")
    try:
        with disk_errors(draft):
            draft.mkdir(parents=True)
            _remove_unused(folder.parent)
        yield draft
        with disk_errors(folder):
            _sync_to_disk(draft)
            try:
                draft.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn OSError into HostError: it is this host's disk that fails."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"data: {path.parent} cannot be written ({error.strerror}); ${CACHE_VARIABLE} must name another folder"
        ) from error


def _sync_to_disk(folder: Path) -> None:
    """Flush every file, so that no complete entry is damaged by a crash of the host."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _cache_root() -> Path:
    """Return the folder of all entries."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "relay" / "data")


def _remove_unused(root: Path) -> None:
    """Remove entries that have not been used for long, and old drafts."""
    for folder in root.iterdir():
        with suppress(FileNotFoundError):
            limit = DRAFT_SECONDS if folder.name.startswith(_DRAFT_PREFIX) else UNUSED_SECONDS
            if time.time() - folder.stat().st_mtime > limit:
                shutil.rmtree(folder, ignore_errors=True)

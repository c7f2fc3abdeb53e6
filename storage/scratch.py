"""Scratch folders, in which a folder is written before it is renamed into place: `<base>/.relay/<writer>-<random>`.

Several hosts may write below one base. Each removes what its own dead processes have left and never another host's. A
process holds a lock on its scratch folder, which the kernel or the file server releases when the process dies.
Blocking.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_FOLDER = ".relay"
_LOCK = "lock"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@contextlib.contextmanager
def scratch_folder(base: Path, writer: str) -> Iterator[Path]:
    """Yield a new empty folder of this process, and remove it afterwards."""
    with _locked(base / _FOLDER, _safe_name(writer)) as scratch:
        yield scratch / "folder"


def remove_leftovers(base: Path, writer: str) -> None:
    """Remove the scratch folders that dead processes of this writer have left."""
    for scratch in (base / _FOLDER).glob(f"{_safe_name(writer)}-*"):
        with contextlib.suppress(
            OSError
        ):  # its process lives; or there are no locks here; or another has just removed it
            descriptor = os.open(scratch / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(scratch)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _locked(parent: Path, writer: str) -> Iterator[Path]:
    """Yield a new folder and hold its lock; make another when a cleaner removed it before it was locked."""
    while True:
        scratch = parent / f"{writer}-{secrets.token_hex(8)}"
        scratch.mkdir(parents=True)
        descriptor = os.open(scratch / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: then nobody cleans up either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not (scratch / _LOCK).exists():
                continue
            (scratch / "folder").mkdir()
            yield scratch
            return
        finally:
            _remove(scratch)
            os.close(descriptor)


def _remove(scratch: Path) -> None:
    """Remove a scratch folder, its lock last, so that a killed removal leaves what a later one can finish."""
    shutil.rmtree(scratch / "folder", ignore_errors=True)
    shutil.rmtree(scratch / "old", ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _safe_name(writer: str) -> str:
    return _UNSAFE.sub("_", writer) or "_"

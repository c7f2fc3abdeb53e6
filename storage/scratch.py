"""Folders in the making, beside those that count: `<base>/.relay/<writer>-<random>`.

Several hosts may write to one base. Each removes what its own dead writers have left and never another's; that one is
dead says a lock, which the kernel (or the file server) lets go of with the process. Blocking.
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

_ROOM = ".relay"
_LOCK = "lock"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@contextlib.contextmanager
def scratch_folder(base: Path, writer: str) -> Iterator[Path]:
    """An empty folder of this process's own, gone again afterwards."""
    with _locked(base / _ROOM, _named(writer)) as room:
        yield room / "folder"


def remove_leftovers(base: Path, writer: str) -> None:
    """Remove what this writer's dead processes have left there."""
    for room in (base / _ROOM).glob(f"{_named(writer)}-*"):
        with contextlib.suppress(OSError):  # alive; or nobody can tell here; or just now removed by another
            descriptor = os.open(room / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(room)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _locked(rooms: Path, writer: str) -> Iterator[Path]:
    """A new folder with a lock that this process holds; made again should a cleaner have been quicker."""
    while True:
        room = rooms / f"{writer}-{secrets.token_hex(8)}"
        room.mkdir(parents=True)
        descriptor = os.open(room / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):  # without locks there is no cleaner either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not (room / _LOCK).exists():
                continue
            (room / "folder").mkdir()
            yield room
            return
        finally:
            _remove(room)
            os.close(descriptor)


def _remove(room: Path) -> None:
    """The lock last: whoever is killed here leaves something that the next one can judge."""
    shutil.rmtree(room / "folder", ignore_errors=True)
    shutil.rmtree(room / "old", ignore_errors=True)
    shutil.rmtree(room, ignore_errors=True)


def _named(writer: str) -> str:
    return _UNSAFE.sub("_", writer) or "_"

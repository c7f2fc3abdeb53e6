"""Notices writes by the kernel's inotify, so that no file is looked at while nothing is written."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x80, 0x100
_libc = ctypes.CDLL(None, use_errno=True)


class WriteWatcher:
    """Folders in which writes are noticed. On some mounts, and in a kernel out of watches, none are: poll as well."""

    def __init__(self) -> None:
        self._fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watches: dict[Path, int] = {}

    def watch(self, folder: Path) -> bool:
        """Notice writes to files directly in `folder`; return False when the kernel cannot."""
        mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE
        if folder not in self._watches:
            self._watches[folder] = int(_libc.inotify_add_watch(self._fd, os.fsencode(folder), mask))
        return self._watches[folder] >= 0

    def unwatch(self, folder: Path) -> None:
        """Stop watching a folder."""
        _libc.inotify_rm_watch(self._fd, self._watches.pop(folder, -1))

    async def wait_for_write(self) -> None:
        """Wait until something was written since the last call."""
        loop = asyncio.get_running_loop()
        noticed = asyncio.Event()
        loop.add_reader(self._fd, noticed.set)
        try:
            await noticed.wait()
        finally:
            loop.remove_reader(self._fd)
            self._drain()

    def _drain(self) -> None:
        try:
            while os.read(self._fd, 1 << 16):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Stop watching all folders."""
        os.close(self._fd)

"""The agent's own event lines about a run, in `agent.jsonl`, which is sent like every other source."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from agent.events.reports import encode_event
from relay.logs import get_logger

log = get_logger(__name__)


class Journal:
    """One attempt's `agent.jsonl`."""

    def __init__(self, path: Path, wall: Callable[[], float]) -> None:
        """`wall` returns the seconds since the epoch."""
        self._path = path
        self._wall = wall
        self._lock = asyncio.Lock()

    async def record(self, level: str, text: str, kind: str = "message") -> None:
        """Record a message for the run's history; `level` is info, warning or error. A failing disk costs the line."""
        log.log(logging.getLevelNamesMapping()[level.upper()], "message for the run", kind=kind, text=text)
        try:
            await self.append(kind, level=level, text=text)
        except OSError as error:
            log.error("journal not written", reason=error)

    async def append(self, kind: str, **values: object) -> int:
        """Append an event line, and return the offset after it. Raises OSError when it was not written whole."""
        time = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
        line = encode_event(kind, time=time, **values)
        async with self._lock:
            return await asyncio.to_thread(_append, self._path, line)


def _append(path: Path, line: bytes) -> int:
    """Append a line, and end the half line that a dead agent left: only that one is a bad line then."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) < len(line):  # half of it fitted on the disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return size + len(line)
    finally:
        os.close(descriptor)

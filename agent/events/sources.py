"""Append-only files, and how much of each the coordinator has. The file is the spool: nothing is copied."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from relay.logs import get_logger

log = get_logger(__name__)

RANGE_SIZE = 64 * 1024  #: bytes of one message, where no line is longer
MAX_LINE = 256 * 1024  #: bytes of the longest line that is sent; longer ones are skipped


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a source, and how many after them are skipped."""

    offset: int
    data: bytes
    skipped: int = 0

    @property
    def end(self) -> int:
        return self.offset + len(self.data) + self.skipped


def _open(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for the writer of a FIFO that a trainer may have put there."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_range(path: Path, offset: int, *, lines: bool, limit: int = RANGE_SIZE) -> ByteRange | None:
    """Return the next byte range from `offset`, cut at a newline when `lines`; None when there is none yet. Blocking.

    A file that cannot be read (now) counts as missing: it must not hold up the files of other runs.
    """
    try:
        with _open(path) as file:
            file.seek(offset)
            data = file.read(limit)
            if not lines:
                return ByteRange(offset, data) if data else None
            if cut := data.rfind(b"\n") + 1:
                return ByteRange(offset, data[:cut])
            if len(data) < limit:
                return None  # half a line
            data += file.read(max(0, MAX_LINE - limit))
            if cut := data.find(b"\n") + 1:
                return ByteRange(offset, data[:cut])
            skipped = len(data)
            while chunk := file.read(1 << 20):
                if cut := chunk.find(b"\n") + 1:
                    return ByteRange(offset, b"", skipped + cut)
                skipped += len(chunk)
    except OSError:
        pass
    return None


def measure_final_length(path: Path, *, lines: bool) -> int:
    """Return the length that counts of a file that grows no more: a last line without an end does not. Blocking."""
    try:
        with _open(path) as file:
            size = file.seek(0, 2)
            if not lines:
                return size
            end = size
            while end > 0:
                start = max(0, end - RANGE_SIZE)
                file.seek(start)
                if cut := file.read(end - start).rfind(b"\n") + 1:
                    return start + cut
                end = start
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.error("events not read", path=path, reason=error)
    return 0


@dataclass(slots=True)
class UnackedRange:
    """A byte range that was sent and is not acknowledged."""

    epoch: int
    end: int
    size: int
    sent_at: float


@dataclass(eq=False, slots=True)
class EventSource:
    """One file of one node of one lease. Owned by the event loop; only reading is done in a thread."""

    lease: str
    node: int
    name: str  #: `events`, `agent`, `stdout` or `stderr`
    path: Path
    lines: bool  #: whether it holds JSON lines, to be cut only at newlines
    #: set when the coordinator refuses it: its lease has ended
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = True  #: False until the coordinator has said how much of it it has
    acked: int = 0  #: bytes that the coordinator has stored for good
    sent: int = 0
    epoch: int = 0  #: counts rewinds: acknowledgements of what was sent before one are ignored
    unacked: deque[UnackedRange] = field(default_factory=deque)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> tuple[str, int, str]:
        return self.lease, self.node, self.name

    def read_next(self) -> ByteRange | None:
        """Return the byte range after what was sent. Blocking."""
        return read_range(self.path, self.sent, lines=self.lines)

    def has_unsent(self) -> bool:
        """Return whether the file has grown past what was sent. Blocking."""
        try:
            return self.ready and self.path.stat().st_size > self.sent
        except OSError:
            return False

    def mark_sent(self, byte_range: ByteRange, now: float) -> None:
        """Note that a byte range was sent."""
        self.sent = byte_range.end
        self.unacked.append(UnackedRange(self.epoch, byte_range.end, len(byte_range.data), now))

    def acknowledge(self, offset: int) -> list[UnackedRange]:
        """Note that all bytes up to `offset` are stored, and return the ranges that ended by it."""
        landed = [flight for flight in self.unacked if flight.end <= offset]
        self.unacked = deque(flight for flight in self.unacked if flight.end > offset)
        self._advance(offset)
        return landed

    def handle_gap(self, expected: int) -> None:
        """Rewind to what the coordinator has. Acknowledgements of what was sent before are ignored."""
        stale = self.unacked.popleft().epoch != self.epoch if self.unacked else False
        if not stale:
            self.rewind(expected)

    def rewind(self, offset: int | None = None) -> None:
        """Continue from `offset`, or from what is acknowledged: what was sent beyond it may be lost."""
        self.acked = self.acked if offset is None else offset
        self.sent = self.acked
        self.epoch += 1

    def sync(self, stored: int) -> None:
        """Take over how much the coordinator has at the start of a session, which may be less than it acknowledged."""
        self.ready = True
        if stored < self.acked:
            self.rewind(stored)
        else:
            self._advance(stored)

    def _advance(self, offset: int) -> None:
        self.acked = max(self.acked, offset)
        self.sent = max(self.sent, self.acked)
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait_stored(self, offset: int) -> None:
        """Wait until the coordinator has everything before `offset`."""
        while self.acked < offset:
            await self._moved.wait()

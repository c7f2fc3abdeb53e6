"""The quota of a store: its size, counted from time to time, and the space that uploads in progress have reserved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from relay.errors import BlobTooLarge, StoreFull

_RECOUNT_SECONDS = 60.0  # other replicas write here too
SPARE_BYTES = 256 * 1024 * 1024  #: of a disk, left for everybody else


@dataclass(slots=True)
class Quota:
    """How many bytes are used, counted from time to time, and how many uploads in progress may add."""

    limit: int
    count: Callable[[], int]  #: bytes that are used; blocking
    free: Callable[[], int]  #: bytes that could still be written where they are put first; blocking
    _used: int = 0
    _count_at: float = field(default=float("-inf"))  #: monotonic
    _reserved: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def reserve(self, size: int) -> Iterator[UploadShare]:
        """Reserve space for an upload. What its share does not claim by the end is free again."""
        if size > self.limit:
            raise BlobTooLarge(f"{size} bytes are more than the whole store may hold ({self.limit})")
        self._recount()
        with self._lock:
            free = self.free() - SPARE_BYTES
            if self._used + self._reserved + size > self.limit or self._reserved + size > free:
                raise StoreFull(
                    f"no quota for {size} bytes: {self._used + self._reserved} of {self.limit} are used, "
                    f"and the disk has {max(free, 0)} to spare"
                )
            self._reserved += size
        share = UploadShare()
        try:
            yield share
        finally:
            with self._lock:
                self._reserved -= size
                self._used += share.taken

    def invalidate(self) -> None:
        """Count again before the next upload, because much has been deleted."""
        self._count_at = min(self._count_at, time.monotonic())

    def _recount(self) -> None:
        """Walk the store, one thread at a time; meanwhile others continue with the last count, once there is one."""
        if time.monotonic() < self._count_at or not self._counting.acquire(blocking=self._count_at < 0):
            return
        try:
            if (began := time.monotonic()) < self._count_at:
                return
            before, counted = self._used, self.count()
            with self._lock:
                self._used += counted - before  # what came meanwhile may count twice, until the next time
                ended = time.monotonic()
                self._count_at = ended + max(_RECOUNT_SECONDS, 20 * (ended - began))
        finally:
            self._counting.release()


@dataclass(slots=True)
class UploadShare:
    """What an upload has added to the store."""

    taken: int = 0

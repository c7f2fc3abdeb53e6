"""What every kind of the coordinator's own store can do.

A blob is seen whole or not at all, and never changes. What nothing names any more is swept some time after it was last
asked for: whoever is told by `stat` that a blob is there may rely on it for as long as that.

Methods block: they read, write, hash and sync. Call them in a thread.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

CHUNK = 1024 * 1024
CHECK_BYTES = 64 * CHUNK  #: hashed between two signs of life


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What the store has of a blob: all of it, or the first `offset` bytes."""

    digest: str
    complete: bool
    offset: int


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep took away, and what it came by and left."""

    blobs: int
    size: int
    left: int


class BlobReader(Protocol):
    """A whole blob, being read."""

    @property
    def size(self) -> int: ...

    def piece(self, at: int) -> bytes:
        """The next bytes from there, empty at its end. DigestMismatch when they cannot be read."""


class Upload(Protocol):
    """One upload under way. Its bytes are hashed as they come."""

    def write(self, data: bytes) -> None:
        """The next bytes."""

    def finish(self) -> None:
        """Check, make durable, and let the blob be seen. DigestMismatch, and nothing is kept, when it is another."""


class Artifacts(Protocol):
    """The store."""

    def claim(self, deployment_id: str) -> bool:
        """Whether the store is this deployment's, which the first to ask makes it. Only its owner may sweep it."""

    def stat(self, digest: str, /) -> BlobStat:
        """What there is of a blob. One that is there stays for as long as a sweep's grace."""

    def stats(self, digests: Sequence[str], /) -> Sequence[BlobStat]:
        """`stat` of several, as fast as the store can."""

    def open_blob(self, digest: str) -> AbstractContextManager[BlobReader]:
        """A whole blob to read from. BlobUnknown when there is none."""

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob whole (a manifest); BlobTooLarge beyond `limit` bytes."""

    def check(self, digest: str) -> Generator[int]:
        """Read a blob whole and compare; yields now and then how many bytes are done.

        Ends by DigestMismatch when it is damaged, after it was set aside; by BlobUnknown when there is none.
        """

    def upload(self, digest: str, size: int, offset: int) -> AbstractContextManager[Upload]:
        """Take a blob's bytes from `offset` on; what came stays for a later upload unless `finish` took it.

        OffsetGap when the store does not have that much; BlobTooLarge or StoreFull when there is no quota.
        """

    def forget_partials(self, digest: str) -> None:
        """Remove what other uploads of a now whole blob left, if nobody writes it."""

    def sweep(self, named: Container[str], before: float) -> SweepResult:
        """Remove blobs that are not `named` (by digest) and that nobody brought or asked for since (epoch seconds)."""

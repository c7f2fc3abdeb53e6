"""What every kind of artifact store can do.

A blob is visible whole or not at all, and never changes. A blob that nothing references is deleted some time after it
was last asked for: a caller that learns from `stat` that a blob exists may rely on it for that long.

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
    """What a sweep deleted, and how many blobs it left."""

    blobs: int
    size: int
    left: int


class BlobReader(Protocol):
    """A complete blob that is being read."""

    @property
    def size(self) -> int: ...

    def piece(self, at: int) -> bytes:
        """Return the next bytes from that offset, empty at the end. DigestMismatch when they cannot be read."""


class Upload(Protocol):
    """One upload in progress. Its bytes are hashed as they arrive."""

    def write(self, data: bytes) -> None:
        """Write the next bytes."""

    def finish(self) -> None:
        """Check the blob, make it durable and visible. DigestMismatch, and nothing is kept, when the content is
        another.
        """


class Artifacts(Protocol):
    """The artifact store."""

    def claim(self, deployment_id: str) -> bool:
        """Return whether the store belongs to this deployment; the first to ask owns it. Only its owner may sweep."""

    def stat(self, digest: str, /) -> BlobStat:
        """Return what the store has of a blob. A blob that exists is kept for at least the sweep's grace from now."""

    def stats(self, digests: Sequence[str], /) -> Sequence[BlobStat]:
        """Return `stat` of several blobs, as fast as the store can."""

    def open_blob(self, digest: str) -> AbstractContextManager[BlobReader]:
        """Open a complete blob for reading; BlobUnknown when there is none."""

    def read(self, digest: str, limit: int) -> bytes:
        """Return the content of a small blob (a manifest); BlobTooLarge beyond `limit` bytes."""

    def check(self, digest: str) -> Generator[int]:
        """Read a whole blob and compare its digest, yielding the number of bytes done from time to time.

        Raises DigestMismatch when it is damaged, after setting it aside, and BlobUnknown when there is none.
        """

    def upload(self, digest: str, size: int, offset: int) -> AbstractContextManager[Upload]:
        """Accept a blob's bytes from `offset` on. Without `finish`, what arrived is kept for a later upload.

        Raises OffsetGap when the store does not have that many bytes, and BlobTooLarge or StoreFull when there is no
        room.
        """

    def forget_partials(self, digest: str) -> None:
        """Delete what other uploads of a now complete blob left, unless they are still being written."""

    def sweep(self, named: Container[str], before: float) -> SweepResult:
        """Delete blobs that are not `named` (by digest) and that nobody uploaded or asked for since `before` (epoch
        seconds).
        """

"""Uploads in progress, each in a file that only grows at its end and is locked by the upload that writes it.

An interrupted upload leaves its file, and the next upload of that digest continues in it. If the interrupted one has
not noticed yet and still holds the lock, the next one copies what it needs. Two uploads of the same bytes at once do
not interfere: each writes its own file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.artifacts.base import CHUNK
from coordinator.artifacts.quota import Quota
from relay.errors import DigestMismatch, InvalidRequest, OffsetGap, StoreFull

KEPT_SECONDS = 7 * 24 * 3600.0  #: nobody comes back to an upload after that

#: Gives a whole file, whose name it is to have, to be seen by others.
Publish = Callable[[Path, str], None]


@dataclass(frozen=True, slots=True)
class PartialUploads:
    """The uploads in one folder. `publish` receives a file once it is complete, verified and durable; it may move it
    away.
    """

    folder: Path
    quota: Quota
    publish: Publish

    @contextmanager
    def upload(self, name: str, size: int, offset: int) -> Iterator[IncomingUpload]:
        """Accept the bytes of `name` (64 hex digits) from `offset` on."""
        if not 0 <= offset <= size:
            raise InvalidRequest(f"an offset of {offset} in a blob of {size} bytes")
        with self.quota.reserve(size - offset) as share, translate_no_space():
            incoming = IncomingUpload(name, self._claim(name, offset), size, self.publish)
            try:
                incoming.rehash(offset)
                yield incoming
            finally:
                share.taken = incoming.added
                incoming.close()

    def longest(self, name: str) -> int:
        """Return how many bytes of it there are."""
        return max((size for _, size in self._of(name)), default=0)

    def forget(self, name: str) -> None:
        """Delete the partial files of a name, unless they are being written."""
        for path, _ in self._of(name):
            remove_unlocked(path)

    def forget_old(self) -> None:
        """Delete the partial files that nobody came back to."""
        remove_old(self.folder)

    def _of(self, name: str) -> list[tuple[Path, int]]:
        """Return the partial files of a name with their sizes, the longest first."""
        found = []
        for path in self.folder.glob(f"{name}.*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat().st_size))
        return sorted(found, key=lambda item: -item[1])

    def _claim(self, name: str, offset: int) -> LockedFile:
        """Return a locked partial file that has exactly the first `offset` bytes."""
        longest = 0
        for path, size in self._of(name) if offset else ():
            longest = max(longest, size)
            if size >= offset and (claimed := LockedFile.take(path)):
                os.ftruncate(claimed.descriptor, offset)
                return claimed
        if longest < offset:
            raise OffsetGap(f"the store has {longest} bytes of it, not {offset}", expected=str(longest))
        return self._copy(name, offset)

    def _copy(self, name: str, offset: int) -> LockedFile:
        """Return a new partial file with the beginning of one that another upload still holds (it only grows)."""
        made = LockedFile.make(self.folder / f"{name}.{uuid.uuid4().hex}")
        try:
            if offset:
                source = self._of(name)[0][0]
                with open(source, "rb") as old, open(made.descriptor, "wb", closefd=False) as new:
                    shutil.copyfileobj(old, new, CHUNK)
                os.ftruncate(made.descriptor, offset)
        except FileNotFoundError:  # it became whole this moment
            made.discard()
            raise OffsetGap("what there was of it has just gone", expected="0") from None
        return made


class IncomingUpload:
    """One upload in progress. Its bytes are hashed as they arrive."""

    def __init__(self, name: str, partial: LockedFile, size: int, publish: Publish) -> None:
        self._name, self._partial, self._size, self._publish = name, partial, size, publish
        self._hash = hashlib.sha256()
        self._resumed_from = self._at = 0

    def rehash(self, offset: int) -> None:
        """Hash what the partial file has already."""
        while self._at < offset:
            piece = os.pread(self._partial.descriptor, min(CHUNK, offset - self._at), self._at)
            self._hash.update(piece)
            self._at += len(piece)
        self._resumed_from = offset

    @property
    def added(self) -> int:
        """The number of bytes that arrived with this upload."""
        return self._at - self._resumed_from

    def write(self, data: bytes) -> None:
        """Write the next bytes."""
        if self._at + len(data) > self._size:
            raise InvalidRequest(f"more bytes than the {self._size} that were announced")
        with translate_no_space():
            view = memoryview(data)
            while view:
                view = view[os.write(self._partial.descriptor, view) :]
        self._hash.update(data)
        self._at += len(data)

    def finish(self) -> None:
        """Check the blob, sync it and make it visible. DigestMismatch, and nothing is kept, when the content is
        another.
        """
        if self._at < self._size:
            raise InvalidRequest(f"the upload ended at {self._at} of {self._size} bytes; go on from there")
        if self._hash.hexdigest() != self._name:
            self._partial.path.unlink(missing_ok=True)
            if self._resumed_from:
                # The fault may lie in the part that an earlier upload left: begin anew rather than give up.
                raise OffsetGap("what there was of it was damaged; send it again from the beginning", expected="0")
            raise DigestMismatch(f"these {self._size} bytes are sha256:{self._hash.hexdigest()}")
        os.utime(self._partial.descriptor)  # most of it may have come long ago
        os.fsync(self._partial.descriptor)
        self._publish(self._partial.path, self._name)

    def close(self) -> None:
        os.close(self._partial.descriptor)


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A partial file that this upload has locked."""

    path: Path
    descriptor: int

    @classmethod
    def make(cls, path: Path) -> LockedFile:
        partial = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600))
        fcntl.flock(partial.descriptor, fcntl.LOCK_EX)
        return partial

    @classmethod
    def take(cls, path: Path) -> LockedFile | None:
        """Lock an existing file; None when another upload holds it or it is gone."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink and path.exists():
                return cls(path, descriptor)
        except BlockingIOError:
            pass
        os.close(descriptor)
        return None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def remove_unlocked(path: Path) -> None:
    """Delete the file unless an upload holds it."""
    if taken := LockedFile.take(path):
        taken.discard()


def remove_old(folder: Path) -> None:
    """Delete files that are older than a week and that no upload holds."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_ctime > KEPT_SECONDS:  # of a rename too, other than mtime
                remove_unlocked(path)


@contextmanager
def translate_no_space() -> Iterator[None]:
    """Raise StoreFull when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("the disk of the artifact store is full") from error
        raise

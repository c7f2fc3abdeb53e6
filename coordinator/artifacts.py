"""The coordinator's own store: files named by the SHA-256 of their bytes, in one folder that replicas may share.

    blobs/ab/<hex>            whole, durable, never changed
    partial/<hex>.<upload>    on its way; grows at its end only, and is locked by the upload that writes it
    damaged/<hex>.<finding>   was whole and is so no more: a disk changed it. Kept for a week for whoever looks into it

A blob is written aside, checked against its digest, synced, and then given its name: what can be seen under `blobs` is
whole, whatever was killed when. An upload that broke off leaves its partial file, and the next upload of that digest
goes on in it; if the broken one has not noticed yet and still holds it, the next one copies what it needs. Two that
bring the same bytes at once do not meet: each writes its own, and the second name replaces the first.

Reading costs no check: who reads knows the digest. When what they got does not match they ask for a `check`, which
takes a damaged blob's name away. From then on the store does not have it, and the next upload of the same bytes,
which training from an earlier checkpoint brings, repairs it.

Methods block: they read, write, hash and sync. Call them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path

from relay.errors import BlobTooLarge, BlobUnknown, DigestMismatch, InvalidRequest, OffsetGap, StoreFull
from relay.manifest import DIGEST

CHUNK = 1024 * 1024
_RECOUNT_SECONDS = 60.0  # other replicas write here too
_SPARE_BYTES = 256 * CHUNK  # of the disk, left for everybody else
_CHECK_BYTES = 64 * CHUNK  # hashed between two signs of life
_KEPT_SECONDS = 7 * 24 * 3600.0  # nobody comes back to an upload, or to what was found damaged, after that
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stat:
    """What the store has of a blob: all of it, or the first `offset` bytes."""

    digest: str
    complete: bool
    offset: int


class Artifacts:
    """The store in `root`, of at most `limit` bytes."""

    def __init__(self, root: Path, *, limit: int) -> None:
        self._blobs, self._partial, self._damaged = root / "blobs", root / "partial", root / "damaged"
        self._room = _Room(root, limit)
        for folder in (self._blobs, self._partial, self._damaged):
            folder.mkdir(parents=True, exist_ok=True)
        self._forget_old()

    def stat(self, digest: str) -> Stat:
        path = self._path(digest)
        try:
            return Stat(digest, True, path.stat().st_size)
        except FileNotFoundError:
            return Stat(digest, False, max((size for _, size in self._partials(path.name)), default=0))

    def open(self, digest: str) -> FileIO:
        """A whole blob to read from. BlobUnknown when there is none."""
        try:
            return FileIO(self._path(digest))
        except FileNotFoundError:
            raise BlobUnknown(f"the artifact store does not have {digest}", digest=digest) from None

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob whole (a manifest); BlobTooLarge beyond `limit` bytes."""
        with BufferedReader(self.open(digest)) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BlobTooLarge(f"{digest} is larger than {limit} bytes")
        return data

    def check(self, digest: str) -> Generator[int]:
        """Read a blob whole and compare; yields now and then how many bytes are done.

        Ends by DigestMismatch when it is damaged, after it was set aside; by BlobUnknown when there is none.
        """
        with self.open(digest) as blob:
            try:
                hasher, at = hashlib.sha256(), 0
                while piece := read_piece(blob, at, digest):
                    hasher.update(piece)
                    at += len(piece)
                    if at % _CHECK_BYTES == 0:
                        yield at
                if f"sha256:{hasher.hexdigest()}" != digest:
                    raise DigestMismatch(f"the {at} bytes that the store has of {digest} are others")
            except DigestMismatch as wrong:
                self._set_aside(digest, blob, str(wrong))
                raise

    def _set_aside(self, digest: str, blob: FileIO, why: str) -> None:
        """Take the blob's name away, unless another file has it by now: then it has been repaired."""
        path = self._path(digest)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(blob.fileno())):
                kept = self._damaged / f"{path.name}.{uuid.uuid4().hex}"
                os.rename(path, kept)
                for folder in (path.parent, self._damaged):
                    _sync_folder(folder)
                _log.error("blob=%s damaged: %s; set aside as %s, the next upload repairs it", digest, why, kept)

    @contextmanager
    def upload(self, digest: str, size: int, offset: int) -> Iterator[Upload]:
        """Take a blob's bytes from `offset` on; what came stays for a later upload unless `finish` took it.

        OffsetGap when the store does not have that much; BlobTooLarge or StoreFull when there is no room.
        """
        path = self._path(digest)
        if not 0 <= offset <= size:
            raise InvalidRequest(f"an offset of {offset} in a blob of {size} bytes")
        with self._room.reserved(size - offset) as share, _no_space_is_full():
            upload = Upload(path, self._claim(path.name, offset), size)
            try:
                upload.rehash(offset)
                yield upload
            finally:
                share.taken = upload.added
                upload.close()

    def forget_partials(self, digest: str) -> None:
        """Remove what other uploads of a now whole blob left, if nobody writes it."""
        for path, _ in self._partials(self._path(digest).name):
            _remove_unlocked(path)

    def _path(self, digest: str) -> Path:
        if not DIGEST.match(digest):
            raise InvalidRequest(f"{digest!r} is not a digest like sha256:<64 hex digits>")
        name = digest.removeprefix("sha256:")
        return self._blobs / name[:2] / name

    def _partials(self, name: str) -> list[tuple[Path, int]]:
        """Partial files of a blob with their sizes, the longest first."""
        found = []
        for path in self._partial.glob(f"{name}.*"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat().st_size))
        return sorted(found, key=lambda item: -item[1])

    def _claim(self, name: str, offset: int) -> _Partial:
        """A locked partial file that has just the first `offset` bytes."""
        longest = 0
        for path, size in self._partials(name) if offset else ():
            longest = max(longest, size)
            if size >= offset and (claimed := _Partial.take(path)):
                os.ftruncate(claimed.descriptor, offset)
                return claimed
        if longest < offset:
            raise OffsetGap(f"the store has {longest} bytes of it, not {offset}", expected=str(longest))
        return self._copy(name, offset)

    def _copy(self, name: str, offset: int) -> _Partial:
        """A new partial file, with the beginning of one that another upload still holds (it only grows)."""
        made = _Partial.make(self._partial / f"{name}.{uuid.uuid4().hex}")
        try:
            if offset:
                source = self._partials(name)[0][0]
                with open(source, "rb") as old, open(made.descriptor, "wb", closefd=False) as new:
                    shutil.copyfileobj(old, new, CHUNK)
                os.ftruncate(made.descriptor, offset)
        except FileNotFoundError:  # it became whole this moment
            made.discard()
            raise OffsetGap("what there was of it has just gone", expected="0") from None
        return made

    def _forget_old(self) -> None:
        for path in (*self._partial.iterdir(), *self._damaged.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_ctime > _KEPT_SECONDS:  # of a rename too, other than mtime
                    _remove_unlocked(path)


def read_piece(blob: FileIO, at: int, digest: str) -> bytes:
    """The next bytes of a blob, empty at its end. DigestMismatch when the disk cannot read them."""
    try:
        return os.pread(blob.fileno(), CHUNK, at)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DigestMismatch(f"the store's disk cannot read {digest} from byte {at} on") from error


class Upload:
    """One upload under way. Its bytes are hashed as they come."""

    def __init__(self, path: Path, partial: _Partial, size: int) -> None:
        self._path, self._partial, self._size = path, partial, size
        self._hash = hashlib.sha256()
        self._resumed_from = self._at = 0

    def rehash(self, offset: int) -> None:
        """Take what the partial file has already into account."""
        while self._at < offset:
            piece = os.pread(self._partial.descriptor, min(CHUNK, offset - self._at), self._at)
            self._hash.update(piece)
            self._at += len(piece)
        self._resumed_from = offset

    @property
    def added(self) -> int:
        """Bytes that came with this upload."""
        return self._at - self._resumed_from

    def write(self, data: bytes) -> None:
        """The next bytes."""
        if self._at + len(data) > self._size:
            raise InvalidRequest(f"more bytes than the {self._size} that were announced")
        with _no_space_is_full():
            view = memoryview(data)
            while view:
                view = view[os.write(self._partial.descriptor, view) :]
        self._hash.update(data)
        self._at += len(data)

    def finish(self) -> None:
        """Check, sync, and let the blob be seen. DigestMismatch, and nothing is kept, when it is another one."""
        if self._at < self._size:
            raise InvalidRequest(f"the upload ended at {self._at} of {self._size} bytes; go on from there")
        if self._hash.hexdigest() != self._path.name:
            self._partial.path.unlink(missing_ok=True)
            if self._resumed_from:
                # The fault may lie in the part that an earlier upload left: begin anew rather than give up.
                raise OffsetGap("what there was of it was damaged; send it again from the beginning", expected="0")
            raise DigestMismatch(f"these {self._size} bytes are sha256:{self._hash.hexdigest()}")
        os.fsync(self._partial.descriptor)
        self._path.parent.mkdir(exist_ok=True)
        os.rename(self._partial.path, self._path)
        for folder in (self._path.parent, self._path.parent.parent):
            _sync_folder(folder)

    def close(self) -> None:
        os.close(self._partial.descriptor)


@dataclass(frozen=True, slots=True)
class _Partial:
    """A partial file, locked by us."""

    path: Path
    descriptor: int

    @classmethod
    def make(cls, path: Path) -> _Partial:
        partial = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600))
        fcntl.flock(partial.descriptor, fcntl.LOCK_EX)
        return partial

    @classmethod
    def take(cls, path: Path) -> _Partial | None:
        """An existing one; None when another upload holds it or it has gone."""
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


def _remove_unlocked(path: Path) -> None:
    if taken := _Partial.take(path):
        taken.discard()


@dataclass(slots=True)
class _Room:
    """How much is used, counted now and then, and what uploads under way may still bring."""

    root: Path
    limit: int
    _used: int = 0
    _count_at: float = field(default=float("-inf"))  #: monotonic
    _reserved: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def reserved(self, size: int) -> Iterator[_Share]:
        """Room for an upload; what it has not told its share of when it ends is free again."""
        if size > self.limit:
            raise BlobTooLarge(f"{size} bytes are more than the whole store may hold ({self.limit})")
        self._recount()
        with self._lock:
            free = shutil.disk_usage(self.root).free - _SPARE_BYTES
            if self._used + self._reserved + size > self.limit or self._reserved + size > free:
                raise StoreFull(
                    f"no room for {size} bytes: {self._used + self._reserved} of {self.limit} are used, "
                    f"and the disk has {max(free, 0)} to spare"
                )
            self._reserved += size
        share = _Share()
        try:
            yield share
        finally:
            with self._lock:
                self._reserved -= size
                self._used += share.taken

    def _recount(self) -> None:
        """Walks the store, one thread at a time; meanwhile the others go on with what is known, once anything is."""
        if time.monotonic() < self._count_at or not self._counting.acquire(blocking=self._count_at < 0):
            return
        try:
            if (began := time.monotonic()) < self._count_at:
                return
            before, counted = self._used, sum(_size_below(self.root))
            with self._lock:
                self._used += counted - before  # what came meanwhile may count twice, until the next time
                ended = time.monotonic()
                self._count_at = ended + max(_RECOUNT_SECONDS, 20 * (ended - began))
        finally:
            self._counting.release()


@dataclass(slots=True)
class _Share:
    """What an upload has added to the store."""

    taken: int = 0


def _size_below(root: Path) -> Iterator[int]:
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.stat(os.path.join(folder, name)).st_size


@contextmanager
def _no_space_is_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("the disk of the artifact store is full") from error
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

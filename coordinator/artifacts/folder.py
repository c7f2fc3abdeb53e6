"""The artifact store in one folder that replicas may share.

    blobs/ab/<hex>            complete, durable, never changed
    partial/<hex>.<upload>    being uploaded
    damaged/<hex>.<finding>   was complete until a disk changed it; kept for a week, for diagnosis
    swept/<hex>.<sweep>       about to be deleted, unless somebody has asked for it in the last moment

A blob is written elsewhere, checked against its digest, synced, and then renamed: whatever is visible under `blobs` is
complete, no matter what was killed when. When two uploads bring the same bytes at once, the second rename replaces the
first.

Reading does not check: the reader knows the digest. When what arrived does not match, the reader asks for a `check`,
which takes the name of a damaged blob away. From then on the store does not have it, and the next upload of the same
bytes, which training from an earlier checkpoint brings, repairs it.

Asking for a blob sets its modification time. A sweep takes the name of an old blob away, looks at the time once more,
and puts the name back when the time has changed: whoever asked before the name was taken finds the blob again, and
whoever asks after that learns that there is none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from coordinator.artifacts.base import CHECK_BYTES, CHUNK, BlobStat, SweepResult
from coordinator.artifacts.partial import IncomingUpload, PartialUploads, remove_old
from coordinator.artifacts.quota import Quota
from relay.errors import BlobTooLarge, BlobUnknown, DigestMismatch, InvalidRequest
from relay.logs import get_logger
from storage.manifest import DIGEST_PATTERN

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A complete blob that is being read."""

    digest: str
    file: FileIO

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def piece(self, at: int) -> bytes:
        """Return the next bytes from that offset, empty at the end. DigestMismatch when the disk cannot read them."""
        try:
            return os.pread(self.file.fileno(), CHUNK, at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DigestMismatch(f"the store's disk cannot read {self.digest} from byte {at} on") from error


class FolderArtifacts:
    """The store in `root`, of at most `limit` bytes."""

    def __init__(self, root: Path, *, limit: int) -> None:
        self._root = root
        self._blobs, self._damaged, self._swept = root / "blobs", root / "damaged", root / "swept"
        for folder in (self._blobs, root / "partial", self._damaged, self._swept):
            folder.mkdir(parents=True, exist_ok=True)
        quota = Quota(limit, lambda: sum(_file_sizes(root)), lambda: shutil.disk_usage(root).free)
        self._partials = PartialUploads(root / "partial", quota, self._publish)
        self._forget_old()

    def claim(self, deployment_id: str) -> bool:
        """Return whether the folder belongs to this deployment; the first to ask owns it."""
        owner = self._root / "deployment"
        with contextlib.suppress(FileExistsError):
            made = self._root / f".deployment-{uuid.uuid4().hex}"
            made.write_text(f"{deployment_id}\n")
            try:
                os.link(made, owner)
            finally:
                made.unlink()
        return owner.read_text().strip() == deployment_id

    def stat(self, digest: str, /) -> BlobStat:
        """Return what the store has of a blob. A blob that exists is kept for at least the sweep's grace from now."""
        path = self._path(digest)
        try:
            os.utime(path)
            return BlobStat(digest, True, path.stat().st_size)  # looked at after it was touched: a sweep puts it back
        except FileNotFoundError:
            return BlobStat(digest, False, self._partials.longest(path.name))

    def stats(self, digests: Sequence[str], /) -> list[BlobStat]:
        """Return `stat` of several blobs."""
        return [self.stat(digest) for digest in digests]

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[FileBlob]:
        """Open a complete blob for reading; BlobUnknown when there is none."""
        path = self._path(digest)
        try:
            file = FileIO(path)
            with contextlib.suppress(FileNotFoundError):  # whoever breaks off may come back for the rest
                os.utime(path)
        except FileNotFoundError:
            raise BlobUnknown(f"the artifact store does not have {digest}", digest=digest) from None
        with file:
            yield FileBlob(digest, file)

    def read(self, digest: str, limit: int) -> bytes:
        """Return the content of a small blob (a manifest); BlobTooLarge beyond `limit` bytes."""
        with self.open_blob(digest) as blob:
            if blob.size > limit:
                raise BlobTooLarge(f"{digest} is larger than {limit} bytes")
            return b"".join(read_pieces(blob))

    def check(self, digest: str) -> Generator[int]:
        """Read a whole blob and compare its digest, yielding the number of bytes done from time to time.

        Raises DigestMismatch when it is damaged, after setting it aside, and BlobUnknown when there is none.
        """
        with self.open_blob(digest) as blob:
            try:
                hasher, at = hashlib.sha256(), 0
                for piece in read_pieces(blob):
                    hasher.update(piece)
                    at += len(piece)
                    if at % CHECK_BYTES == 0:
                        yield at
                if f"sha256:{hasher.hexdigest()}" != digest:
                    raise DigestMismatch(f"the {at} bytes that the store has of {digest} are others")
            except DigestMismatch as wrong:
                self._set_aside(digest, blob.file, str(wrong))
                raise

    def _set_aside(self, digest: str, blob: FileIO, why: str) -> None:
        """Take the blob's name away, unless another file has that name by now: then it has been repaired."""
        path = self._path(digest)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(blob.fileno())):
                kept = self._damaged / f"{path.name}.{uuid.uuid4().hex}"
                os.rename(path, kept)
                for folder in (path.parent, self._damaged):
                    _sync_folder(folder)
                _log.error("damaged blob set aside, the next upload repairs it", blob=digest, reason=why, kept=kept)

    @contextmanager
    def upload(self, digest: str, size: int, offset: int) -> Iterator[IncomingUpload]:
        """Accept a blob's bytes from `offset` on. Without `finish`, what arrived is kept for a later upload.

        Raises OffsetGap when the store does not have that many bytes, and BlobTooLarge or StoreFull when there is no
        room.
        """
        with self._partials.upload(self._path(digest).name, size, offset) as incoming:
            yield incoming

    def forget_partials(self, digest: str) -> None:
        """Delete what other uploads of a now complete blob left, unless they are still being written."""
        self._partials.forget(self._path(digest).name)

    def _publish(self, whole: Path, name: str) -> None:
        path = self._blobs / name[:2] / name
        path.parent.mkdir(exist_ok=True)
        os.rename(whole, path)
        for folder in (path.parent, path.parent.parent):
            _sync_folder(folder)

    def sweep(self, named: Container[str], before: float) -> SweepResult:
        """Delete blobs that are not `named` (by digest) and that nobody uploaded or asked for since `before` (epoch
        seconds).
        """
        self._restore_set_aside()
        self._forget_old()
        blobs = size = left = 0
        for path in self._blobs.glob("??/*"):
            taken = 0 if f"sha256:{path.name}" in named else self._delete_unless_touched(path, before)
            blobs, size, left = blobs + bool(taken), size + taken, left + (not taken)
        if blobs:
            self._partials.quota.invalidate()
        return SweepResult(blobs, size, left)

    def _delete_unless_touched(self, path: Path, before: float) -> int:
        """Delete a blob unless it was touched; return the bytes that this frees (at least 1), or 0 when it is kept."""
        aside = self._swept / f"{path.name}.{uuid.uuid4().hex}"
        try:
            if path.stat().st_mtime >= before:
                return 0
            os.rename(path, aside)
            status = aside.stat()
            if status.st_mtime >= before:
                os.rename(aside, path)
                return 0
            aside.unlink()
        except FileNotFoundError:  # another sweep, or a check that found it damaged
            return 0
        return max(1, status.st_size)

    def _restore_set_aside(self) -> None:
        """Restore what a killed sweep had set aside; what is still unreferenced, this sweep finds again."""
        for aside in self._swept.iterdir():
            name = aside.name.partition(".")[0]
            with contextlib.suppress(FileNotFoundError):
                os.rename(aside, self._blobs / name[:2] / name)

    def _path(self, digest: str) -> Path:
        name = parse_digest(digest)
        return self._blobs / name[:2] / name

    def _forget_old(self) -> None:
        self._partials.forget_old()
        remove_old(self._damaged)


def parse_digest(digest: str) -> str:
    """Return the 64 hex digits of a digest; InvalidRequest when it is not one."""
    if not DIGEST_PATTERN.match(digest):
        raise InvalidRequest(f"{digest!r} is not a digest like sha256:<64 hex digits>")
    return digest.removeprefix("sha256:")


def read_pieces(blob: FileBlob) -> Iterator[bytes]:
    """Yield all of a blob, piece by piece."""
    at = 0
    while piece := blob.piece(at):
        at += len(piece)
        yield piece


def _file_sizes(root: Path) -> Iterator[int]:
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.stat(os.path.join(folder, name)).st_size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The coordinator's own store in one folder that replicas may share.

    blobs/ab/<hex>            whole, durable, never changed
    partial/<hex>.<upload>    on its way
    damaged/<hex>.<finding>   was whole and is so no more: a disk changed it. Kept for a week for whoever looks into it
    swept/<hex>.<sweep>       about to go, if nobody has asked for it in the last moment

A blob is written aside, checked against its digest, synced, and then given its name: what can be seen under `blobs` is
whole, whatever was killed when. Of two that bring the same bytes at once the second name replaces the first.

Reading costs no check: who reads knows the digest. When what they got does not match they ask for a `check`, which
takes a damaged blob's name away. From then on the store does not have it, and the next upload of the same bytes,
which training from an earlier checkpoint brings, repairs it.

Asking for a blob sets its modification time. A sweep takes the name of an old one away, looks at the time once more,
and puts it back when it has changed meanwhile: who asked before the name went finds the blob again, and who asked
after it was told that there is none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
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
from storage.manifest import DIGEST_PATTERN

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A whole blob, being read."""

    digest: str
    file: FileIO

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def piece(self, at: int) -> bytes:
        """The next bytes from there, empty at its end. DigestMismatch when the disk cannot read them."""
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
        """Whether the folder is this deployment's, which the first to ask makes it."""
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
        """What there is of a blob. One that is there stays for as long as a sweep's grace."""
        path = self._path(digest)
        try:
            os.utime(path)
            return BlobStat(digest, True, path.stat().st_size)  # looked at after it was touched: a sweep puts it back
        except FileNotFoundError:
            return BlobStat(digest, False, self._partials.longest(path.name))

    def stats(self, digests: Sequence[str], /) -> list[BlobStat]:
        """`stat` of several."""
        return [self.stat(digest) for digest in digests]

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[FileBlob]:
        """A whole blob to read from. BlobUnknown when there is none."""
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
        """A small blob whole (a manifest); BlobTooLarge beyond `limit` bytes."""
        with self.open_blob(digest) as blob:
            if blob.size > limit:
                raise BlobTooLarge(f"{digest} is larger than {limit} bytes")
            return b"".join(read_pieces(blob))

    def check(self, digest: str) -> Generator[int]:
        """Read a blob whole and compare; yields now and then how many bytes are done.

        Ends by DigestMismatch when it is damaged, after it was set aside; by BlobUnknown when there is none.
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
    def upload(self, digest: str, size: int, offset: int) -> Iterator[IncomingUpload]:
        """Take a blob's bytes from `offset` on; what came stays for a later upload unless `finish` took it.

        OffsetGap when the store does not have that much; BlobTooLarge or StoreFull when there is no quota.
        """
        with self._partials.upload(self._path(digest).name, size, offset) as incoming:
            yield incoming

    def forget_partials(self, digest: str) -> None:
        """Remove what other uploads of a now whole blob left, if nobody writes it."""
        self._partials.forget(self._path(digest).name)

    def _publish(self, whole: Path, name: str) -> None:
        path = self._blobs / name[:2] / name
        path.parent.mkdir(exist_ok=True)
        os.rename(whole, path)
        for folder in (path.parent, path.parent.parent):
            _sync_folder(folder)

    def sweep(self, named: Container[str], before: float) -> SweepResult:
        """Remove blobs that are not `named` (by digest) and that nobody brought or asked for since (epoch seconds)."""
        self._put_back()
        self._forget_old()
        blobs = size = left = 0
        for path in self._blobs.glob("??/*"):
            taken = 0 if f"sha256:{path.name}" in named else self._take(path, before)
            blobs, size, left = blobs + bool(taken), size + taken, left + (not taken)
        if blobs:
            self._partials.quota.invalidate()
        return SweepResult(blobs, size, left)

    def _take(self, path: Path, before: float) -> int:
        """Remove a blob unless it was touched; the bytes that this frees (1 at least), 0 when it stays."""
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

    def _put_back(self) -> None:
        """What a sweep that was killed had taken aside: if it is still unwanted, this one finds it again."""
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
    """The 64 hex digits; InvalidRequest for what is no digest."""
    if not DIGEST_PATTERN.match(digest):
        raise InvalidRequest(f"{digest!r} is not a digest like sha256:<64 hex digits>")
    return digest.removeprefix("sha256:")


def read_pieces(blob: FileBlob) -> Iterator[bytes]:
    """All of it, a piece at a time."""
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

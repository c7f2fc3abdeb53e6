"""The artifact store in a bucket that replicas share: S3 and compatible stores, Google's, Azure's.

    blobs/ab/<hex>/<object>   complete, durable, never changed; each upload makes an object of its own
    touched/<hex>             when an old blob was last asked for: objects there cannot be touched themselves
    doomed/<object>           a sweep is about to delete that object
    damaged/<hex>/<object>    was complete until it was damaged
    deployment                the deployment that owns the store

Bytes of an upload lie on the replica's own disk, in files that grow, until they are complete and verified. Then they
are put into the bucket, in parts when they are large, and a bucket shows an object whole or not at all. So an
interrupted upload continues at the same replica, and starts from the beginning at another.

A bucket has no names to take away, so a sweep and a reader of an old blob notify each other: the sweep marks an object
as doomed and then looks when it was touched; the reader touches it and then looks whether it is doomed. At least one of
the two sees the other. A doomed object does not exist for anyone, and since every upload makes an object of its own,
one that is put in the meantime is another, which that sweep does not delete.

Credentials come from this process's environment, as the provider's own tools read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Container, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from coordinator.artifacts.base import CHECK_BYTES, CHUNK, BlobStat, SweepResult
from coordinator.artifacts.folder import parse_digest
from coordinator.artifacts.partial import IncomingUpload, PartialUploads
from coordinator.artifacts.quota import Quota
from relay.errors import BlobTooLarge, BlobUnknown, DigestMismatch
from relay.logs import get_logger
from storage.base import StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_WINDOW = 8 * CHUNK  # read at once
_PART, _PARTS = 8 * CHUNK, 8000  # of a large upload, at least; at most
RETRIES = 5
_AT_ONCE = 32  # questions to the bucket
_STALE = 3600.0  #: seconds after which a sweep's mark has outlived its sweep
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BucketObject:
    """One object of a blob."""

    path: str
    size: int
    time: float  #: of when it was put, epoch seconds

    @property
    def id(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def name(self) -> str:
        """The name of its blob."""
        return self.path.split("/")[-2]


@dataclass(slots=True)
class BucketBlob:
    """A complete blob that is being read in windows."""

    bucket: ObjectStore
    object: BucketObject
    _window: memoryview = field(default_factory=lambda: memoryview(b""))
    _from: int = 0

    @property
    def size(self) -> int:
        return self.object.size

    def piece(self, at: int) -> bytes:
        """Return the next bytes from that offset, empty at the end."""
        import obstore

        if not self._from <= at < self._from + len(self._window):
            length = min(_WINDOW, self.size - at)
            if length <= 0:
                return b""
            with _translate_errors():
                found = obstore.get_range(self.bucket, self.object.path, start=at, length=length)
            self._window, self._from = memoryview(found), at
        offset = at - self._from
        return bytes(self._window[offset : offset + CHUNK])


class BucketArtifacts:
    """The store at `url` (e.g. `s3://bucket/prefix`), of at most `limit` bytes; `scratch` is a folder of this replica.

    `grace` is that of the sweeps: a blob that is younger than half of it need not be touched.
    """

    def __init__(self, url: str, scratch: Path, *, limit: int, grace: float) -> None:
        self.url = url
        self._bucket = open_bucket(url)
        self._young = grace / 2
        self._touched: dict[str, float] = {}  #: by name, when this process touched it last
        partial = scratch / "partial"
        partial.mkdir(parents=True, exist_ok=True)
        self._partials = PartialUploads(
            partial, Quota(limit, self._used, lambda: shutil.disk_usage(partial).free), self._put
        )
        self._partials.forget_old()

    def claim(self, deployment_id: str) -> bool:
        """Return whether the bucket belongs to this deployment; the first to ask owns it."""
        import obstore
        from obstore import exceptions

        with _translate_errors():
            with contextlib.suppress(exceptions.AlreadyExistsError, exceptions.PreconditionError):
                obstore.put(self._bucket, "deployment", deployment_id.encode(), mode="create")
            return bytes(obstore.get(self._bucket, "deployment").bytes()).decode() == deployment_id

    def stat(self, digest: str, /) -> BlobStat:
        """Return what the store has of a blob. A blob that exists is kept for at least the sweep's grace from now."""
        name = parse_digest(digest)
        if (found := self._find(name)) is not None:
            return BlobStat(digest, True, found.size)
        return BlobStat(digest, False, self._partials.longest(name))

    def stats(self, digests: Sequence[str], /) -> list[BlobStat]:
        """Return `stat` of several blobs, a few dozen at once, since each is a request to the bucket."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self.stat, digests))

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[BucketBlob]:
        """Open a complete blob for reading; BlobUnknown when there is none."""
        found = self._find(parse_digest(digest))
        if found is None:
            raise BlobUnknown(f"the artifact store does not have {digest}", digest=digest)
        yield BucketBlob(self._bucket, found)

    def read(self, digest: str, limit: int) -> bytes:
        """Return the content of a small blob (a manifest); BlobTooLarge beyond `limit` bytes."""
        with self.open_blob(digest) as blob:
            if blob.size > limit:
                raise BlobTooLarge(f"{digest} is larger than {limit} bytes")
            return b"".join(_read_pieces(blob))

    def check(self, digest: str) -> Generator[int]:
        """Read a whole blob and compare its digest, yielding the number of bytes done from time to time.

        Raises DigestMismatch when it is damaged, after setting it aside, and BlobUnknown when there is none.
        """
        with self.open_blob(digest) as blob:
            hasher, at = hashlib.sha256(), 0
            for piece in _read_pieces(blob):
                hasher.update(piece)
                at += len(piece)
                if at % CHECK_BYTES == 0:
                    yield at
            if f"sha256:{hasher.hexdigest()}" != digest:
                self._set_aside(blob.object)
                raise DigestMismatch(f"the {at} bytes that the store has of {digest} are others")

    def _set_aside(self, damaged: BucketObject) -> None:
        import obstore

        kept = f"damaged/{damaged.name}/{damaged.id}"
        with _translate_errors():
            obstore.copy(self._bucket, damaged.path, kept)
            obstore.delete(self._bucket, damaged.path)
        _log.error("damaged blob set aside, the next upload repairs it", blob=damaged.name, kept=kept)

    @contextmanager
    def upload(self, digest: str, size: int, offset: int) -> Iterator[IncomingUpload]:
        """Accept a blob's bytes from `offset` on. Without `finish`, what arrived is kept on this replica for a later
        upload.
        """
        with self._partials.upload(parse_digest(digest), size, offset) as incoming:
            yield incoming

    def forget_partials(self, digest: str) -> None:
        """Delete what other uploads of a now complete blob left, unless they are still being written."""
        self._partials.forget(parse_digest(digest))

    def _put(self, whole: Path, name: str) -> None:
        import obstore

        part = max(_PART, whole.stat().st_size // _PARTS)
        with _translate_errors():
            obstore.put(self._bucket, f"blobs/{name[:2]}/{name}/{uuid.uuid4().hex}", whole, chunk_size=part)
        whole.unlink()

    def _used(self) -> int:
        return sum(each.size for each in self._list("blobs/"))

    def _find(self, name: str) -> BucketObject | None:
        """Return the newest object of a blob that is not doomed, after touching the blob when it is old; None without
        one.
        """
        for each in sorted(self._list(f"blobs/{name[:2]}/{name}/"), key=lambda each: -each.time):
            if time.time() - each.time < self._young:
                return each
            self._touch(name)
            if not self._is_there(f"doomed/{each.id}"):
                return each
        return None

    def _touch(self, name: str) -> None:
        """Touch the blob, unless that was done a short while ago."""
        import obstore

        if time.monotonic() - self._touched.get(name, float("-inf")) < self._young / 2:
            return
        began = time.monotonic()
        with _translate_errors():
            obstore.put(self._bucket, f"touched/{name}", b"touched")
        self._touched[name] = began

    def sweep(self, named: Container[str], before: float) -> SweepResult:
        """Delete blobs that are not `named` (by digest) and that nobody uploaded or asked for since `before` (epoch
        seconds).
        """
        self._partials.forget_old()
        objects, doomed = self._list("blobs/"), {each.id for each in self._list("doomed/")}
        touched = {each.id: each.time for each in self._list("touched/")}
        newest: dict[str, BucketObject] = {}
        for each in (each for each in objects if each.id not in doomed):
            newest[each.name] = max(newest.get(each.name, each), each, key=lambda each: each.time)
        blobs = size = 0
        for each in objects:
            wanted = f"sha256:{each.name}" in named and newest.get(each.name) is each
            if (
                not wanted
                and max(each.time, touched.get(each.name, 0.0)) < before
                and self._delete_unless_touched(each, before)
            ):
                blobs, size = blobs + 1, size + each.size
        self._clean(touched, before, {each.id for each in objects})
        if blobs:
            self._partials.quota.invalidate()
        return SweepResult(blobs, size, len(objects) - blobs)

    def _delete_unless_touched(self, each: BucketObject, before: float) -> bool:
        """Delete an object unless its blob was touched in the meantime; return whether it was deleted."""
        import obstore

        with _translate_errors():
            obstore.put(self._bucket, f"doomed/{each.id}", b"doomed")
            touched = self._modified(f"touched/{each.name}")
            if touched is None or touched < before:
                obstore.delete(self._bucket, each.path)
            obstore.delete(self._bucket, f"doomed/{each.id}")
        return touched is None or touched < before

    def _clean(self, touched: dict[str, float], before: float, known: set[str]) -> None:
        """Delete marks that mean nothing any more. The mark of a sweep that was killed dooms its object until the next
        sweep.
        """
        import obstore

        old = [f"touched/{name}" for name, at in touched.items() if at < before]
        old += [each.path for each in self._list("doomed/") if each.id not in known and self._is_stale(each)]
        with _translate_errors():
            for path in old:
                obstore.delete(self._bucket, path)

    def _is_stale(self, mark: BucketObject) -> bool:
        return time.time() - mark.time > _STALE

    def _is_there(self, path: str) -> bool:
        return self._modified(path) is not None

    def _modified(self, path: str) -> float | None:
        import obstore

        try:
            with _translate_errors():
                return _epoch_seconds(obstore.head(self._bucket, path)["last_modified"])
        except FileNotFoundError:
            return None

    def _list(self, prefix: str) -> list[BucketObject]:
        import obstore

        with _translate_errors():
            found = [meta for batch in obstore.list(self._bucket, prefix, chunk_size=1000) for meta in batch]
        return [BucketObject(meta["path"], meta["size"], _epoch_seconds(meta["last_modified"])) for meta in found]


def open_bucket(url: str) -> ObjectStore:
    """Open the bucket with this process's credentials; ValueError when these do not work."""
    from obstore import exceptions
    from obstore.store import AzureStore, GCSStore, S3Store

    parts = urlsplit(url)
    prefix = parts.path.strip("/") or None
    plain = any(os.environ.get(name, "").startswith("http://") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    retry: RetryConfig = {"retry_timeout": timedelta(seconds=20), "max_retries": RETRIES}
    options: ClientConfig = {
        "timeout": timedelta(seconds=60),
        "connect_timeout": timedelta(seconds=5),
        "allow_http": plain,
    }
    try:
        match parts.scheme:
            case "s3":
                return S3Store(parts.netloc, prefix=prefix, client_options=options, retry_config=retry)
            case "gs":
                return GCSStore(parts.netloc, prefix=prefix, client_options=options, retry_config=retry)
            case _:
                return AzureStore(parts.netloc, prefix=prefix, client_options=options, retry_config=retry)
    except exceptions.BaseError as error:
        raise ValueError(str(error).partition("\n")[0]) from error


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise StoreUnavailable for a bucket that does not answer, or refuses. FileNotFoundError is not translated."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.NotFoundError, exceptions.AlreadyExistsError):
        raise
    except exceptions.BaseError as error:
        raise StoreUnavailable(f"the artifact store's bucket: {str(error).partition(chr(10))[0][:300]}") from error


def _read_pieces(blob: BucketBlob) -> Iterator[bytes]:
    at = 0
    while piece := blob.piece(at):
        at += len(piece)
        yield piece


def _epoch_seconds(moment: datetime) -> float:
    return moment.timestamp()

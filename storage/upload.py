"""The upload of one file to a bucket: read, checked against its digest and rate-limited, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import obstore

from storage.address import Address
from storage.base import Progress
from storage.manifest import ManifestError, ManifestFile
from storage.obstore_client import BucketClient, translate_errors
from storage.threads import in_thread
from storage.throttling import RateLimit

if TYPE_CHECKING:
    from obstore import PutResult

SINGLE = 8 * 1024 * 1024  #: bytes that are sent in one request; more are sent in parts
PARTS_AT_ONCE = 4
MAX_PARTS = 9_000  #: of the 10,000 that S3 allows
READ = 4 * 1024 * 1024
ABORT = 20.0  #: seconds that aborting a cancelled upload may take


class _UploadCancelled(Exception):
    """The upload has been cancelled."""


class FileUpload:
    """The upload of one file. Raises OSError for this host's disk, ManifestError when the file has changed."""

    def __init__(self, source: Path, file: ManifestFile, rate_limit: RateLimit, progress: Progress) -> None:
        self._source = source
        self._file = file
        self._rate_limit = rate_limit
        self._progress = progress
        self._cancelled = False
        self._failure: Exception | None = None

    async def read_all(self) -> bytes:
        """Return the content of a small file."""
        pieces = [piece async for piece in self._pieces()]
        return b"".join(pieces)

    async def send_in_parts(self, client: BucketClient, at: Address, attributes: dict[str, str]) -> None:
        """Upload the file in parts; when that fails or is cancelled, the client aborts the upload, which drops them."""
        upload = asyncio.ensure_future(
            obstore.put_async(
                client,
                at.path,
                self._stream(),
                attributes=attributes,
                use_multipart=True,
                chunk_size=max(SINGLE, -(-self._file.size // MAX_PARTS)),
                max_concurrency=PARTS_AT_ONCE,
            )
        )
        try:
            with translate_errors(str(at)):
                await asyncio.shield(upload)
        except asyncio.CancelledError:
            await self._abort(upload)
            raise
        except Exception:
            if self._failure is not None:
                raise self._failure from None
            raise

    async def _abort(self, upload: asyncio.Future[PutResult]) -> None:
        """Make the client abort the upload, which it does only when the stream it reads fails."""
        self._cancelled = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT):
                await asyncio.wait([upload])
        if upload.cancel():
            return
        if not upload.cancelled():
            upload.exception()

    async def _stream(self) -> AsyncIterator[bytes]:
        """Yield the file to the client. A failure is kept here, since the client does not pass it on."""
        try:
            async for piece in self._pieces():
                if self._cancelled:
                    raise _UploadCancelled
                yield piece
        except Exception as error:
            self._failure = error
            raise

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yield the file in pieces. The last one is held back until the digest of the whole file has been checked."""
        digest, held = hashlib.sha256(), b""
        with contextlib.ExitStack() as stack:
            read = await in_thread(lambda: stack.enter_context(self._source.open("rb", buffering=0)))
            while piece := await in_thread(read.read, READ):
                await in_thread(digest.update, piece)
                if held:
                    yield held
                self._progress(len(piece))
                await self._rate_limit.take(len(piece))
                held = piece
        if f"sha256:{digest.hexdigest()}" != self._file.digest:
            raise ManifestError(f"{self._file.path} is not what its manifest says any more")
        if held:
            yield held

"""A file on its way to a bucket: read, checked against its digest, and paced, in bounded memory."""

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

SINGLE = 8 * 1024 * 1024  #: bytes that go in one piece; more go in parts
PARTS_AT_ONCE = 4
MAX_PARTS = 9_000  #: of the 10,000 that S3 allows
READ = 4 * 1024 * 1024
ABORT = 20.0  #: seconds to let the backend drop the parts of an upload that is given up


class _GivenUp(Exception):
    """Whoever wanted this sent does not any more."""


class FileUpload:
    """One file, once. Raises OSError for this host's disk, ManifestError when the file is another one by now."""

    def __init__(self, source: Path, file: ManifestFile, rate_limit: RateLimit, progress: Progress) -> None:
        self._source = source
        self._file = file
        self._rate_limit = rate_limit
        self._progress = progress
        self._given_up = False
        self._failure: Exception | None = None

    async def read_all(self) -> bytes:
        """All of a small one."""
        pieces = [piece async for piece in self._pieces()]
        return b"".join(pieces)

    async def send_in_parts(self, client: BucketClient, at: Address, attributes: dict[str, str]) -> None:
        """Upload it. Whatever goes wrong, a cancellation too, lets the client tell the backend to drop the parts."""
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
            await self._give_up(upload)
            raise
        except Exception:
            if self._failure is not None:
                raise self._failure from None
            raise

    async def _give_up(self, upload: asyncio.Future[PutResult]) -> None:
        """The client aborts an upload only when what it reads from fails."""
        self._given_up = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT):
                await asyncio.wait([upload])
        if upload.cancel():
            return
        if not upload.cancelled():
            upload.exception()

    async def _stream(self) -> AsyncIterator[bytes]:
        """What the client reads; it must hear of every failure, and forgets which one it was."""
        try:
            async for piece in self._pieces():
                if self._given_up:
                    raise _GivenUp
                yield piece
        except Exception as error:
            self._failure = error
            raise

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The file, a piece at a time. The last one is held back until all of it is known to be right."""
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

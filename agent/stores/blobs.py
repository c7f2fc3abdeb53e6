"""Files in and out of the coordinator's own store, by digest: resumable, several at once, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import IO

import grpc

from agent.coordinator_client import CALL_TIMEOUT, Contact, Coordinator, call_with_retry
from relay.errors import BlobUnknown, DigestMismatch, InvalidRequest, OffsetGap
from relay.logs import get_logger
from relay.v1 import artifacts_pb2 as pb
from relay.v1 import artifacts_pb2_grpc
from storage.base import DamagedCopy
from storage.manifest import hash_file
from storage.throttling import RateLimit

log = get_logger(__name__)

CHUNK = 512 * 1024
STAT_AT_ONCE = 5000
STALLED = 60.0  #: seconds without a chunk after which a transfer starts anew


class BlobClient:
    """The artifact store, over one connection of its own."""

    def __init__(
        self, coordinator: Coordinator, channel: grpc.aio.Channel, contact: Contact, rate_limit: RateLimit | None = None
    ) -> None:
        self._coordinator = coordinator
        self._stub = artifacts_pb2_grpc.ArtifactsStub(channel)
        self._contact = contact
        self._rate_limit = rate_limit or RateLimit()

    async def find_missing(self, digests: Iterable[str]) -> dict[str, int]:
        """Return the blobs that are not whole in the store, each with the offset at which an upload continues."""
        wanted = list(dict.fromkeys(digests))
        stats = [
            stat
            for at in range(0, len(wanted), STAT_AT_ONCE)
            for stat in await self._stat(wanted[at : at + STAT_AT_ONCE])
        ]
        return {stat.digest: stat.offset for stat in stats if not stat.complete}

    async def _stat(self, digests: Sequence[str]) -> Sequence[pb.BlobStat]:
        request = pb.StatBlobsRequest(digests=digests)
        answer = await call_with_retry(
            self._contact,
            lambda: self._stub.StatBlobs(request, metadata=self._coordinator.metadata, timeout=CALL_TIMEOUT),
        )
        return answer.blobs

    async def put(self, content: Path | bytes, digest: str) -> None:
        """Upload a file, or bytes in memory, unless the store has it; after a break continue where the store says.

        Raises OSError when it cannot be read, DigestMismatch when it changed meanwhile, StoreFull or BlobTooLarge.
        """
        while True:
            try:
                return await call_with_retry(self._contact, lambda: self._put(content, digest))
            except OffsetGap as gap:  # what there was of it went, or became whole, meanwhile
                log.info("upload begins anew", digest=digest, reason=gap)
                await self._contact.wait_for_reply()

    async def _put(self, content: Path | bytes, digest: str) -> None:
        offset = (await self.find_missing([digest])).get(digest)
        if offset is None:
            return
        with await asyncio.to_thread(_open, content) as file:
            size = file.seek(0, os.SEEK_END)
            call = self._stub.PutBlob(metadata=self._coordinator.metadata)
            try:
                await call.write(pb.PutBlobRequest(header=pb.PutBlobHeader(digest=digest, size=size, offset=offset)))
                async for chunk in read_chunks(file, offset):
                    async with asyncio.timeout(STALLED):
                        await call.write(pb.PutBlobRequest(chunk=chunk))
                    await self._rate_limit.take(len(chunk))
                await call.done_writing()
                await call
            except asyncio.InvalidStateError:
                await call  # it ended before we were through: says why
            finally:
                call.cancel()

    async def get(self, digest: str, path: Path, *, executable: bool = False) -> None:
        """Download a blob to `path`, whole and verified or not at all; a broken download resumes from `path`'s `.part`.

        What arrives wrong is fetched once more, after the store has checked its own bytes: either the transfer was at
        fault, or the store sets the blob aside. Raises DamagedCopy when the store does not have it or has wrong bytes.
        """
        part = path.with_name(path.name + ".part")
        await asyncio.to_thread(part.parent.mkdir, parents=True, exist_ok=True)
        try:
            if not await self._download(digest, part):
                log.warning("blob arrived damaged, the store is asked to check it", blob=digest)
                await call_with_retry(self._contact, lambda: self._get(digest, part, verify=True))
                if (await asyncio.to_thread(hash_file, part))[0] != digest:
                    raise DigestMismatch(f"{path.name} arrives damaged again and again")
        except BlobUnknown as error:
            raise DamagedCopy(f"{digest[:19]}… is not in the store: {error}") from error
        except DigestMismatch as error:
            await asyncio.to_thread(part.unlink, missing_ok=True)
            raise DamagedCopy(f"{path.name} does not match its digest: {error}") from error
        await asyncio.to_thread(_rename, part, path, executable)

    async def _download(self, digest: str, part: Path) -> bool:
        """Return whether a blob was downloaded whole and right; otherwise nothing of it stays."""
        with contextlib.suppress(DigestMismatch, InvalidRequest):  # the latter: its file there is shorter than ours
            await call_with_retry(self._contact, lambda: self._get(digest, part))
            if (await asyncio.to_thread(hash_file, part))[0] == digest:
                return True
        await asyncio.to_thread(part.unlink, missing_ok=True)
        return False

    async def _get(self, digest: str, part: Path, *, verify: bool = False) -> None:
        with await asyncio.to_thread(part.open, "ab") as file:
            request = pb.GetBlobRequest(digest=digest, offset=file.tell(), verify=verify)
            call = self._stub.GetBlob(request, metadata=self._coordinator.metadata)
            try:
                while isinstance(answer := await _read_message(call), pb.GetBlobResponse):
                    await asyncio.to_thread(file.write, answer.chunk)
                    await self._rate_limit.take(len(answer.chunk))
            finally:
                call.cancel()


async def _read_message(call: grpc.aio.UnaryStreamCall[pb.GetBlobRequest, pb.GetBlobResponse]) -> object:
    async with asyncio.timeout(STALLED):
        return await call.read()


def _open(content: Path | bytes) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


async def read_chunks(file: IO[bytes], offset: int) -> AsyncIterator[bytes]:
    """Yield the rest of a file, a chunk at a time, read in a thread."""
    file.seek(offset)
    while chunk := await asyncio.to_thread(file.read, CHUNK):
        yield chunk


def _rename(part: Path, path: Path, executable: bool) -> None:
    part.chmod(0o755 if executable else 0o644)
    part.replace(path)

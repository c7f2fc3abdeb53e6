"""Uploads and downloads of the coordinator's store: files by their digest, several at a time, resumed where cut off."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import grpc

from relay import errors
from relay.v1 import artifacts_pb2 as pb
from relay.v1 import artifacts_pb2_grpc as pb_grpc
from relayctl.client.channel import CoordinatorChannel, Retries
from storage import manifest
from storage.base import Progress, ignore_progress

CHUNK = 512 * 1024  #: bytes in one message
AT_ONCE = 4  #: files that are read or transferred at the same time
_STATS = 1000  #: digests in one StatBlobs request

Result = TypeVar("Result")
#: Begins a stage of work, given its title and its size in bytes, and returns what to report its progress to.
StartProgress = Callable[[str, int], Progress]


class PullFailed(Exception):
    """A checkpoint or result cannot be fetched, or what was fetched is not what the run published."""


class SendFailed(Exception):
    """Something could not be written to its destination; the message names the destination and the reason."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Content to upload, a file on this disk or bytes in memory, with its digest and its size in bytes."""

    digest: str
    size: int
    source: Path | bytes

    @classmethod
    def from_bytes(cls, content: bytes) -> Blob:
        """Make a blob of bytes in memory."""
        return cls(manifest.digest_bytes(content), len(content), content)


async def _gather_bounded(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run coroutines, at most AT_ONCE at a time; the first failure stops the rest and is raised as it is."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def run_one(part: Coroutine[Any, Any, Result]) -> Result:
        async with limit:
            return await part

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_one(part)) for part in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def hash_files(files: Iterable[Path], progress: Progress = ignore_progress) -> dict[Path, Blob]:
    """Hash files, a few at a time, and return the blob of each."""

    async def hash_one(path: Path) -> Blob:
        digest, size = await asyncio.to_thread(manifest.hash_file, path)
        progress(size)
        return Blob(digest, size, path)

    paths = list(dict.fromkeys(files))
    return dict(zip(paths, await _gather_bounded(hash_one(path) for path in paths), strict=True))


class ArtifactsClient:
    """A client of the coordinator's store, which keeps blobs by their digest."""

    def __init__(self, channel: CoordinatorChannel) -> None:
        self._channel = channel
        self._stub = pb_grpc.ArtifactsStub(channel.grpc_channel)

    async def find_missing(self, blobs: Iterable[Blob]) -> dict[Blob, int]:
        """Return the blobs that the store does not have whole, each with the number of bytes that it has of it."""
        by_digest = {blob.digest: blob for blob in blobs}
        digests = list(by_digest)
        absent: dict[Blob, int] = {}
        for start in range(0, len(digests), _STATS):
            request = pb.StatBlobsRequest(digests=digests[start : start + _STATS])
            answer = await self._channel.call(self._stub.StatBlobs, request)
            absent |= {by_digest[stat.digest]: stat.offset for stat in answer.blobs if not stat.complete}
        return absent

    async def upload(self, blobs: Mapping[Blob, int], progress: Progress = ignore_progress) -> None:
        """Upload each blob from its offset; `find_missing` returns which blobs to upload and from where."""
        await _gather_bounded(self._put(blob, offset, progress) for blob, offset in blobs.items())

    async def _put(self, blob: Blob, offset: int, progress: Progress) -> None:
        """Upload one blob, resuming at what the store has after every broken connection."""
        retries, sent = Retries(self._channel), offset
        progress(offset)

        def count(size: int) -> None:
            nonlocal sent
            sent += size
            progress(size)

        while True:
            try:
                await self._stub.PutBlob(_make_upload_requests(blob, sent, count), metadata=self._channel.metadata)
                return
            except grpc.aio.AioRpcError as error:
                refusal = errors.from_rpc(error)
                if isinstance(refusal, errors.DigestMismatch):
                    raise errors.DigestMismatch(f"{_describe_blob(blob)} changed while it was being uploaded") from None
                if isinstance(refusal, errors.OffsetGap):  # what there was of it went, or became whole, meanwhile
                    await retries.wait(str(refusal))
                else:
                    await retries.wait_after_error(error)
            stored = (await self.find_missing([blob])).get(blob)
            if stored is None:
                return
            if stored > offset:
                retries, offset = Retries(self._channel), stored
            progress(stored - sent)
            sent = stored

    async def download(self, digest: str, size: int, target: Path, progress: Progress = ignore_progress) -> None:
        """Download a blob of `size` bytes to `target`, verified, resuming from what an earlier download left.

        A blob that arrives damaged is downloaded once more after the store has verified its own bytes; when that does
        not match its digest either, nothing is left and PullFailed is raised.
        """
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{digest.removeprefix('sha256:')[:12]}.part")
        try:
            with contextlib.suppress(errors.DigestMismatch, errors.InvalidRequest):
                if await self._fetch(digest, size, part, progress):
                    os.replace(part, target)
                    return
            progress(-part.stat().st_size)
            part.unlink()
            if not await self._fetch(digest, size, part, progress, verify=True):
                raise errors.DigestMismatch("its bytes are right in the store and wrong here")
        except errors.DigestMismatch as error:
            part.unlink(missing_ok=True)
            raise PullFailed(f"{target.name} arrived damaged: {error}") from error
        os.replace(part, target)

    async def _fetch(self, digest: str, size: int, part: Path, progress: Progress, *, verify: bool = False) -> bool:
        """Download the rest of a blob into `part` and return whether its content matches the digest."""
        with part.open("a+b") as file:
            hasher = await asyncio.to_thread(_hash_existing, file, size)
            progress(file.tell())
            while file.tell() < size:
                before = file.tell()
                async for chunk in self._stream_chunks(digest, file.tell, verify=verify):
                    await asyncio.to_thread(_append, file, hasher, chunk)
                    progress(len(chunk))
                if file.tell() == before:
                    break
        return f"sha256:{hasher.hexdigest()}" == digest

    def _stream_chunks(self, digest: str, position: Callable[[], int], *, verify: bool = False) -> AsyncIterator[bytes]:
        """Yield the rest of a blob from the byte at `position()`, which is asked again after a broken connection."""

        def open_stream() -> AsyncIterable[pb.GetBlobResponse]:
            request = pb.GetBlobRequest(digest=digest, offset=position(), verify=verify)
            call: AsyncIterable[pb.GetBlobResponse] = self._stub.GetBlob(request, metadata=self._channel.metadata)
            return call

        return (piece.chunk async for piece in self._channel.resume_stream(open_stream))

    async def read_blob(self, digest: str, limit: int) -> bytes:
        """Return the verified content of a blob of at most `limit` bytes; raises PullFailed."""
        try:
            for verify in (False, True):
                content = await self._read_once(digest, limit, verify=verify)
                if manifest.digest_bytes(content) == digest:
                    return content
        except errors.DigestMismatch as error:
            raise PullFailed(f"{digest} arrived damaged: {error}") from error
        raise PullFailed(f"{digest} arrived damaged: its bytes are right in the store and wrong here")

    async def _read_once(self, digest: str, limit: int, *, verify: bool) -> bytes:
        content = bytearray()
        async for chunk in self._stream_chunks(digest, content.__len__, verify=verify):
            content += chunk
            if len(content) > limit:
                raise PullFailed(f"{digest} is larger than {limit} bytes")
        return bytes(content)

    async def read_manifest(self, digest: str) -> manifest.Manifest:
        """Return the manifest that is stored under this digest; raises PullFailed."""
        try:
            return manifest.Manifest.from_bytes(await self.read_blob(digest, manifest.MAX_BYTES))
        except manifest.ManifestError as error:
            raise PullFailed(str(error)) from error

    async def pull(
        self, content: manifest.Manifest, folder: Path, progress: Progress = ignore_progress
    ) -> Sequence[Path]:
        """Download every file of the manifest into `folder`, verified; files that are there and match are kept."""

        async def pull_one(file: manifest.ManifestFile) -> Path:
            target = folder / file.path
            if await asyncio.to_thread(_matches, target, file):
                progress(file.size)
            else:
                await self.download(file.digest, file.size, target, progress)
            if file.executable:
                target.chmod(target.stat().st_mode | 0o111)
            return target

        return await _gather_bounded(pull_one(file) for file in content.files)


async def _make_upload_requests(blob: Blob, offset: int, count: Progress) -> AsyncIterator[pb.PutBlobRequest]:
    yield pb.PutBlobRequest(header=pb.PutBlobHeader(digest=blob.digest, size=blob.size, offset=offset))
    if isinstance(blob.source, bytes):
        for start in range(offset, blob.size, CHUNK):
            chunk = blob.source[start : start + CHUNK]
            yield pb.PutBlobRequest(chunk=chunk)
            count(len(chunk))
        return
    with await asyncio.to_thread(blob.source.open, "rb") as file:
        file.seek(offset)
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield pb.PutBlobRequest(chunk=chunk)
            count(len(chunk))


def _describe_blob(blob: Blob) -> str:
    return str(blob.source) if isinstance(blob.source, Path) else blob.digest


def _matches(target: Path, file: manifest.ManifestFile) -> bool:
    return (
        target.is_file()
        and not target.is_symlink()
        and target.stat().st_size == file.size
        and manifest.hash_file(target)[0] == file.digest
    )


def _hash_existing(file: BinaryIO, size: int) -> hashlib._Hash:
    """Hash what is in the file already, after emptying it when it is longer than the blob."""
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(0)
    file.seek(0)
    hasher = hashlib.sha256()
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return hasher


def _append(file: BinaryIO, hasher: hashlib._Hash, chunk: bytes) -> None:
    file.write(chunk)
    hasher.update(chunk)

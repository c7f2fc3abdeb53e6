"""Files by content, to and from the coordinator's store: only what is missing, several at a time, resumed where cut."""

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
from relayctl.client.channel import Line, Trial
from storage import manifest

CHUNK = 512 * 1024
AT_ONCE = 4
_STATS = 1000  #: digests asked for in one message

Result = TypeVar("Result")
Progress = Callable[[int], None]  #: told how many more bytes are done


class PullFailed(Exception):
    """What was fetched is not what the run published, or cannot be written here."""


class SendFailed(Exception):
    """Something has not arrived where it was to go; says where, and why."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes to upload, by content: a file on this disk, or bytes in memory."""

    digest: str
    size: int
    source: Path | bytes

    @classmethod
    def of_bytes(cls, content: bytes) -> Blob:
        return cls(manifest.digest_bytes(content), len(content), content)


async def _together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Carries all of it out, a few at a time; the first failure stops the rest and is raised as it is."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(part: Coroutine[Any, Any, Result]) -> Result:
        async with limit:
            return await part

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(part)) for part in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def describe(files: Iterable[Path], progress: Progress = lambda done: None) -> dict[Path, Blob]:
    """Each file's content hashed, a few files at a time."""

    async def one(path: Path) -> Blob:
        digest, size = await asyncio.to_thread(manifest.hash_file, path)
        progress(size)
        return Blob(digest, size, path)

    paths = list(dict.fromkeys(files))
    return dict(zip(paths, await _together(one(path) for path in paths), strict=True))


class Artifacts:
    """The coordinator's store, seen from outside."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._stub = pb_grpc.ArtifactsStub(line.channel)

    async def missing(self, blobs: Iterable[Blob]) -> dict[Blob, int]:
        """Those the store does not have whole → how many bytes of each it has."""
        by_digest = {blob.digest: blob for blob in blobs}
        digests = list(by_digest)
        absent: dict[Blob, int] = {}
        for start in range(0, len(digests), _STATS):
            request = pb.StatBlobsRequest(digests=digests[start : start + _STATS])
            answer = await self._line.call(self._stub.StatBlobs, request)
            absent |= {by_digest[stat.digest]: stat.offset for stat in answer.blobs if not stat.complete}
        return absent

    async def upload(self, blobs: Mapping[Blob, int], progress: Progress = lambda done: None) -> None:
        """Uploads each blob from its offset; `missing` says which and from where."""
        await _together(self._put(blob, offset, progress) for blob, offset in blobs.items())

    async def _put(self, blob: Blob, offset: int, progress: Progress) -> None:
        trial, sent = Trial(self._line), offset
        progress(offset)

        def count(size: int) -> None:
            nonlocal sent
            sent += size
            progress(size)

        while True:
            try:
                await self._stub.PutBlob(_upload(blob, sent, count), metadata=self._line.metadata)
                return
            except grpc.aio.AioRpcError as error:
                if isinstance(errors.from_rpc(error), errors.DigestMismatch):
                    raise errors.DigestMismatch(f"{_title(blob)} changed while it was being uploaded") from None
                await trial.failed(error)
            taken = (await self.missing([blob])).get(blob)
            if taken is None:
                return
            if taken > offset:
                trial, offset = Trial(self._line), taken
            progress(taken - sent)
            sent = taken

    async def download(self, digest: str, size: int, target: Path, progress: Progress = lambda done: None) -> None:
        """Puts one blob at `target`, whole and verified, or raises; goes on from what an earlier try left.

        What arrives wrong is fetched once more, after the store has checked its own bytes.
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
        """Whether the blob is in `part` now, whole and right."""
        with part.open("a+b") as file:
            hasher = await asyncio.to_thread(_resume, file, size)
            progress(file.tell())
            while file.tell() < size:
                before = file.tell()
                async for chunk in self._chunks(digest, file.tell, verify=verify):
                    await asyncio.to_thread(_take, file, hasher, chunk)
                    progress(len(chunk))
                if file.tell() == before:
                    break
        return f"sha256:{hasher.hexdigest()}" == digest

    def _chunks(self, digest: str, at: Callable[[], int], *, verify: bool = False) -> AsyncIterator[bytes]:
        """The rest of a blob from where `at` says, also after every break of the line."""

        def start() -> AsyncIterable[pb.GetBlobResponse]:
            request = pb.GetBlobRequest(digest=digest, offset=at(), verify=verify)
            call: AsyncIterable[pb.GetBlobResponse] = self._stub.GetBlob(request, metadata=self._line.metadata)
            return call

        return (piece.chunk async for piece in self._line.resumed(start))

    async def read(self, digest: str, limit: int) -> bytes:
        """A small blob in memory, verified."""
        try:
            for verify in (False, True):
                content = await self._content(digest, limit, verify=verify)
                if manifest.digest_bytes(content) == digest:
                    return content
        except errors.DigestMismatch as error:
            raise PullFailed(f"{digest} arrived damaged: {error}") from error
        raise PullFailed(f"{digest} arrived damaged: its bytes are right in the store and wrong here")

    async def _content(self, digest: str, limit: int, *, verify: bool) -> bytes:
        content = bytearray()
        async for chunk in self._chunks(digest, content.__len__, verify=verify):
            content += chunk
            if len(content) > limit:
                raise PullFailed(f"{digest} is larger than {limit} bytes")
        return bytes(content)

    async def contents(self, digest: str) -> manifest.Manifest:
        """The manifest of that digest."""
        try:
            return manifest.Manifest.from_bytes(await self.read(digest, manifest.MAX_BYTES))
        except manifest.ManifestError as error:
            raise PullFailed(str(error)) from error

    async def pull(
        self, content: manifest.Manifest, folder: Path, progress: Progress = lambda done: None
    ) -> Sequence[Path]:
        """Puts every file that the manifest names into `folder`, verified; those already there and right stay."""

        async def one(file: manifest.ManifestFile) -> Path:
            target = folder / file.path
            if await asyncio.to_thread(_has, target, file):
                progress(file.size)
            else:
                await self.download(file.digest, file.size, target, progress)
            if file.executable:
                target.chmod(target.stat().st_mode | 0o111)
            return target

        return await _together(one(file) for file in content.files)


async def _upload(blob: Blob, offset: int, count: Progress) -> AsyncIterator[pb.PutBlobRequest]:
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


def _title(blob: Blob) -> str:
    return str(blob.source) if isinstance(blob.source, Path) else blob.digest


def _has(target: Path, file: manifest.ManifestFile) -> bool:
    return (
        target.is_file()
        and not target.is_symlink()
        and target.stat().st_size == file.size
        and manifest.hash_file(target)[0] == file.digest
    )


def _resume(file: BinaryIO, size: int) -> hashlib._Hash:
    """Hashes what is there already; what cannot be a beginning is thrown away."""
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(0)
    file.seek(0)
    hasher = hashlib.sha256()
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return hasher


def _take(file: BinaryIO, hasher: hashlib._Hash, chunk: bytes) -> None:
    file.write(chunk)
    hasher.update(chunk)

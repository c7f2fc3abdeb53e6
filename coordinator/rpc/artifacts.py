"""The Artifacts service: uploads and downloads of blobs, a chunk at a time. Files are accessed in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import Any

from grpc import aio

from coordinator.artifacts.base import Artifacts, BlobStat, Upload
from relay.errors import InvalidRequest, TooLarge
from relay.v1 import artifacts_pb2 as pb
from relay.v1 import artifacts_pb2_grpc
from storage.threads import in_thread

MAX_DIGESTS = 10_000
_Context = aio.ServicerContext[Any, Any]


class ArtifactsService(artifacts_pb2_grpc.ArtifactsServicer):
    """Serves one artifact store."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def StatBlobs(self, request: pb.StatBlobsRequest, context: _Context) -> pb.StatBlobsResponse:
        if len(request.digests) > MAX_DIGESTS:
            raise TooLarge(f"{len(request.digests)} digests; ask for at most {MAX_DIGESTS} at once")
        stats = await in_thread(self._artifacts.stats, request.digests)
        return pb.StatBlobsResponse(blobs=[_render_stat(stat) for stat in stats])

    async def PutBlob(self, requests: AsyncIterator[pb.PutBlobRequest], context: _Context) -> pb.PutBlobResponse:
        header = await _read_header(requests)
        stat = await in_thread(self._artifacts.stat, header.digest)
        if not stat.complete:
            async with _open_upload(self._artifacts, header) as upload:
                async for request in requests:
                    await in_thread(upload.write, _parse_chunk(request))
                await in_thread(upload.finish)
            await in_thread(self._artifacts.forget_partials, header.digest)
        return pb.PutBlobResponse(digest=header.digest, size=stat.offset if stat.complete else header.size)

    async def GetBlob(self, request: pb.GetBlobRequest, context: _Context) -> AsyncIterator[pb.GetBlobResponse]:
        if request.verify:
            with closing(self._artifacts.check(request.digest)) as checking:
                while await in_thread(next, checking, None) is not None:
                    yield pb.GetBlobResponse()  # so that a long check does not look like a dead line
        with ExitStack() as opened:
            blob = await in_thread(lambda: opened.enter_context(self._artifacts.open_blob(request.digest)))
            size, offset = blob.size, request.offset
            if not 0 <= offset <= size:
                raise InvalidRequest(f"an offset of {offset} in a blob of {size} bytes")
            while piece := await in_thread(blob.piece, offset):
                offset += len(piece)
                yield pb.GetBlobResponse(chunk=piece)


async def _read_header(requests: AsyncIterator[pb.PutBlobRequest]) -> pb.PutBlobHeader:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "header":
        raise InvalidRequest("an upload must begin with its header")
    return first.header


def _parse_chunk(request: pb.PutBlobRequest) -> bytes:
    if request.WhichOneof("message") != "chunk":
        raise InvalidRequest("after the header only chunks must follow")
    return request.chunk


@asynccontextmanager
async def _open_upload(artifacts: Artifacts, header: pb.PutBlobHeader) -> AsyncIterator[Upload]:
    """Open the store's upload; it is entered and left in threads."""
    with ExitStack() as stack:
        try:
            upload = artifacts.upload(header.digest, header.size, header.offset)
            yield await in_thread(stack.enter_context, upload)
        finally:
            await in_thread(stack.close)


def _render_stat(stat: BlobStat) -> pb.BlobStat:
    return pb.BlobStat(digest=stat.digest, complete=stat.complete, offset=stat.offset)

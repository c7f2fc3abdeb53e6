"""AppendEvents: reads ahead so that batches can form, answers in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from coordinator.commands.events import Answer, Appender, Stretch
from coordinator.rpc import requests
from relay.errors import InvalidRequest, LeaseLost, OffsetGap
from relay.v1 import agents_pb2 as pb

_AHEAD = 16  # stretches of one stream that are read and not yet answered
_Pending = tuple[pb.AppendEventsRequest, "asyncio.Future[Answer]"]


async def append_events(
    appender: Appender, stream: AsyncIterator[pb.AppendEventsRequest]
) -> AsyncIterator[pb.AppendEventsResponse]:
    """Serve one stream to its end. What refuses a single stretch is an answer; anything else is raised."""
    pending: asyncio.Queue[_Pending | None] = asyncio.Queue(_AHEAD)
    reading = asyncio.create_task(_read(appender, stream, pending))
    try:
        while (item := await pending.get()) is not None:
            request, answer = item
            yield _response(request, await answer)
        await reading  # why it ended, if not by its end
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _read(
    appender: Appender, stream: AsyncIterator[pb.AppendEventsRequest], pending: asyncio.Queue[_Pending | None]
) -> None:
    try:
        async for request in stream:
            await pending.put((request, appender.append(_stretch(request))))
    except Exception:
        await pending.put(None)
        raise
    await pending.put(None)


def _stretch(request: pb.AppendEventsRequest) -> Stretch:
    if request.source not in requests.SOURCES:
        raise InvalidRequest(f"{request.source[:50]!r} is not a source: {', '.join(requests.SOURCES)}")
    if min(request.node, request.offset, request.skipped_bytes) < 0 or request.offset + request.skipped_bytes >= 2**62:
        raise InvalidRequest("node, offset and skipped are not negative, and not beyond any file")
    lease_id = requests.lease_id(request.lease)
    run_id = request.lease.split("/")[1]
    return Stretch(run_id, lease_id, request.node, request.source, request.offset, request.data, request.skipped_bytes)


def _response(request: pb.AppendEventsRequest, answer: Answer) -> pb.AppendEventsResponse:
    response = pb.AppendEventsResponse(lease=request.lease, node=request.node, source=request.source)
    match answer:
        case int():
            response.acked_offset = answer
        case LeaseLost() | OffsetGap():
            response.refused.CopyFrom(answer.status())
        case _:
            raise answer
    return response

"""The Agents service: what hosts call. AppendEvents reads ahead so that batches can form, and answers in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from grpc import aio

from coordinator.artifacts.base import Artifacts
from coordinator.artifacts.garbage_collection import require_folder
from coordinator.commands import checkpoints, leases, retention
from coordinator.commands.events import Appender, AppendResult, ByteRange
from coordinator.database.connections import Database
from coordinator.rpc import requests, responses
from coordinator.rpc.sessions import LiveSession, NumberedHeartbeat, SessionEnded, Sessions
from relay.errors import InvalidRequest, LeaseLost, OffsetGap
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc
from storage.threads import in_thread

_Context = aio.ServicerContext[Any, Any]
_READ_AHEAD = 16  # byte ranges of one stream that are read and not yet answered
_Pending = tuple[pb.AppendEventsRequest, "asyncio.Future[AppendResult]"]


class AgentsService(agents_pb2_grpc.AgentsServicer):
    """Serves agents."""

    def __init__(
        self, db: Database, artifacts: Artifacts, sessions: Sessions, appender: Appender, timing: LeaseTiming
    ) -> None:
        self._db = db
        self._appender = appender
        self._artifacts = artifacts
        self._sessions = sessions
        self._timing = timing

    async def Session(
        self, stream: AsyncIterator[pb.SessionRequest], context: _Context
    ) -> AsyncIterator[pb.SessionResponse]:
        first = await anext(stream, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("a session must begin with a hello")
        hello = requests.parse_hello(first.hello)
        try:
            async with self._sessions.open(hello) as session:
                yield responses.render_welcome(session.welcome, self._timing)
                async with aclosing(session.messages(_parse_heartbeats(hello.agent, session, stream))) as messages:
                    async for message in messages:
                        yield responses.render_session_message(message)
        except SessionEnded as over:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(over))

    async def StartAttempt(self, request: pb.StartAttemptRequest, context: _Context) -> pb.StartAttemptResponse:
        checkpoint = requests.parse_checkpoint_id(request.checkpoint) if request.checkpoint else None
        lease, skipped = requests.parse_lease_id(request.lease), requests.parse_skipped(request.skipped)
        await leases.start(self._db, lease, request.node, checkpoint, skipped)
        return pb.StartAttemptResponse()

    def AppendEvents(
        self, stream: AsyncIterator[pb.AppendEventsRequest], context: _Context
    ) -> AsyncIterator[pb.AppendEventsResponse]:
        return append_events(self._appender, stream)

    async def RegisterCheckpoint(
        self, request: pb.RegisterCheckpointRequest, context: _Context
    ) -> pb.RegisterCheckpointResponse:
        view = await checkpoints.register(
            self._db, requests.parse_lease_id(request.lease), requests.parse_new_checkpoint(request)
        )
        return pb.RegisterCheckpointResponse(checkpoint=responses.render_checkpoint(view))

    async def AddCopy(self, request: pb.AddCopyRequest, context: _Context) -> pb.AddCopyResponse:
        lease, checkpoint = requests.parse_lease_id(request.lease), requests.parse_checkpoint_id(request.checkpoint)
        copy = requests.parse_copy(request.copy)
        if copy.store == "relay":
            await in_thread(require_folder, self._artifacts, copy.uri.removeprefix("relay://"))
        await checkpoints.add_copy(self._db, lease, checkpoint, request.node, copy)
        return pb.AddCopyResponse()

    async def ListRemovals(self, request: pb.ListRemovalsRequest, context: _Context) -> pb.ListRemovalsResponse:
        agent, session_id = requests.parse_agent_name(request.agent), requests.parse_session_id(request.session_id)
        found = await retention.list_removals(self._db, agent, session_id, self._timing.ttl, disk_low=request.disk_low)
        sealed = requests.parse_sealed(request.sealed)
        orphans = set(await retention.find_orphans(self._db, list(sealed), self._timing.ttl)) if sealed else ()
        return pb.ListRemovalsResponse(
            removals=[responses.render_removal(each) for each in found],
            orphans=[message for key, message in sealed.items() if key in orphans],
        )

    async def ReportRemovals(self, request: pb.ReportRemovalsRequest, context: _Context) -> pb.ReportRemovalsResponse:
        agent, session_id = requests.parse_agent_name(request.agent), requests.parse_session_id(request.session_id)
        await retention.report_removals(self._db, agent, session_id, requests.parse_removals(request.removals))
        return pb.ReportRemovalsResponse()

    async def CompleteLease(self, request: pb.CompleteLeaseRequest, context: _Context) -> pb.CompleteLeaseResponse:
        lease, report = requests.parse_lease_id(request.lease), requests.parse_completion(request)
        if report.output and "uri" not in report.output:
            await in_thread(require_folder, self._artifacts, report.output["manifest_digest"])
        state = await leases.complete(self._db, lease, report)
        return pb.CompleteLeaseResponse(state=responses.render_run_state(state))


async def _parse_heartbeats(
    agent: str, session: LiveSession, stream: AsyncIterator[pb.SessionRequest]
) -> AsyncIterator[NumberedHeartbeat]:
    async for request in stream:
        if request.WhichOneof("message") != "heartbeat":
            raise InvalidRequest("after the hello only heartbeats must follow")
        heartbeat = requests.parse_heartbeat(agent, session.welcome.session_id, request.heartbeat)
        yield NumberedHeartbeat(request.heartbeat.sequence, heartbeat)


async def append_events(
    appender: Appender, stream: AsyncIterator[pb.AppendEventsRequest]
) -> AsyncIterator[pb.AppendEventsResponse]:
    """Serve one stream to its end. A refused range is a response; any other error ends the stream."""
    pending: asyncio.Queue[_Pending | None] = asyncio.Queue(_READ_AHEAD)
    reading = asyncio.create_task(_read_ahead(appender, stream, pending))
    try:
        while (item := await pending.get()) is not None:
            request, answer = item
            yield _render_result(request, await answer)
        await reading  # why it ended, if not by its end
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _read_ahead(
    appender: Appender, stream: AsyncIterator[pb.AppendEventsRequest], pending: asyncio.Queue[_Pending | None]
) -> None:
    try:
        async for request in stream:
            await pending.put((request, appender.append(_parse_byte_range(request))))
    except Exception:
        await pending.put(None)
        raise
    await pending.put(None)


def _parse_byte_range(request: pb.AppendEventsRequest) -> ByteRange:
    if request.source not in requests.SOURCES:
        raise InvalidRequest(f"{request.source[:50]!r} is not a source: {', '.join(requests.SOURCES)}")
    if min(request.node, request.offset, request.skipped_bytes) < 0 or request.offset + request.skipped_bytes >= 2**62:
        raise InvalidRequest("node, offset and skipped_bytes must not be negative, or beyond any file")
    lease_id = requests.parse_lease_id(request.lease)
    run_id = request.lease.split("/")[1]
    return ByteRange(
        run_id, lease_id, request.node, request.source, request.offset, request.data, request.skipped_bytes
    )


def _render_result(request: pb.AppendEventsRequest, answer: AppendResult) -> pb.AppendEventsResponse:
    response = pb.AppendEventsResponse(lease=request.lease, node=request.node, source=request.source)
    match answer:
        case int():
            response.acked_offset = answer
        case LeaseLost() | OffsetGap():
            response.refused.CopyFrom(answer.status())
        case _:
            raise answer
    return response

"""The Agents service: what hosts call. Parse, call, render."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from grpc import aio

from coordinator import render, wire
from coordinator.artifacts.base import Artifacts
from coordinator.artifacts.collecting import check_whole
from coordinator.commands import checkpoints, leases, retention
from coordinator.commands.events import Appender
from coordinator.database import Database
from coordinator.rpc.events import append_events
from coordinator.sessions import Heartbeat, LiveSession, SessionOver, Sessions
from relay.errors import InvalidRequest
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc
from storage.threads import in_thread

_Context = aio.ServicerContext[Any, Any]


class AgentsService(agents_pb2_grpc.AgentsServicer):
    """Serves the hosts."""

    def __init__(
        self, db: Database, artifacts: Artifacts, sessions: Sessions, appender: Appender, timing: LeaseTiming
    ) -> None:
        self._db = db
        self._appender = appender
        self._artifacts = artifacts
        self._sessions = sessions
        self._timing = timing

    async def Session(
        self, requests: AsyncIterator[pb.SessionRequest], context: _Context
    ) -> AsyncIterator[pb.SessionResponse]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("a session begins with a hello")
        hello = wire.hello(first.hello)
        try:
            async with self._sessions.open(hello) as session:
                yield render.welcome(session.welcome, self._timing)
                async with aclosing(session.messages(_heartbeats(hello.agent, session, requests))) as messages:
                    async for message in messages:
                        yield render.told(message)
        except SessionOver as over:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(over))

    async def StartAttempt(self, request: pb.StartAttemptRequest, context: _Context) -> pb.StartAttemptResponse:
        checkpoint = wire.checkpoint_id(request.checkpoint) if request.checkpoint else None
        lease, skipped = wire.lease_id(request.lease), wire.skipped(request.skipped)
        await leases.start(self._db, lease, request.node, checkpoint, skipped)
        return pb.StartAttemptResponse()

    def AppendEvents(
        self, requests: AsyncIterator[pb.AppendEventsRequest], context: _Context
    ) -> AsyncIterator[pb.AppendEventsResponse]:
        return append_events(self._appender, requests)

    async def RegisterCheckpoint(
        self, request: pb.RegisterCheckpointRequest, context: _Context
    ) -> pb.RegisterCheckpointResponse:
        view = await checkpoints.register(self._db, wire.lease_id(request.lease), wire.new_checkpoint(request))
        return pb.RegisterCheckpointResponse(checkpoint=render.checkpoint(view))

    async def AddCopy(self, request: pb.AddCopyRequest, context: _Context) -> pb.AddCopyResponse:
        lease, checkpoint = wire.lease_id(request.lease), wire.checkpoint_id(request.checkpoint)
        copy = wire.copy(request.copy)
        if copy.store == "relay":
            await in_thread(check_whole, self._artifacts, copy.uri.removeprefix("relay://"))
        await checkpoints.add_copy(self._db, lease, checkpoint, request.node, copy)
        return pb.AddCopyResponse()

    async def ListRemovals(self, request: pb.ListRemovalsRequest, context: _Context) -> pb.ListRemovalsResponse:
        agent, session_id = wire.agent_name(request.agent), wire.session_id(request.session_id)
        found = await retention.removals(self._db, agent, session_id, self._timing.ttl, scarce=request.scarce)
        sealed = wire.sealed(request.sealed)
        orphans = set(await retention.orphans(self._db, list(sealed), self._timing.ttl)) if sealed else ()
        return pb.ListRemovalsResponse(
            removals=[render.removal(each) for each in found],
            orphans=[message for key, message in sealed.items() if key in orphans],
        )

    async def ReportRemovals(self, request: pb.ReportRemovalsRequest, context: _Context) -> pb.ReportRemovalsResponse:
        agent, session_id = wire.agent_name(request.agent), wire.session_id(request.session_id)
        await retention.removed(self._db, agent, session_id, wire.gone(request.removals))
        return pb.ReportRemovalsResponse()

    async def CompleteLease(self, request: pb.CompleteLeaseRequest, context: _Context) -> pb.CompleteLeaseResponse:
        lease, report = wire.lease_id(request.lease), wire.completion(request)
        if report.output and "uri" not in report.output:
            await in_thread(check_whole, self._artifacts, report.output["manifest_digest"])
        state = await leases.complete(self._db, lease, report)
        return pb.CompleteLeaseResponse(state=render.run_state(state))


async def _heartbeats(
    agent: str, session: LiveSession, requests: AsyncIterator[pb.SessionRequest]
) -> AsyncIterator[Heartbeat]:
    async for request in requests:
        if request.WhichOneof("message") != "heartbeat":
            raise InvalidRequest("after its hello a session sends heartbeats")
        pulse = wire.pulse(agent, session.welcome.session_id, request.heartbeat)
        yield Heartbeat(request.heartbeat.sequence, pulse)

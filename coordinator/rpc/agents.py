"""The Agents service: what hosts call. Parse, call, render."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from grpc import aio

from coordinator.artifacts.base import Artifacts
from coordinator.artifacts.garbage_collection import check_whole
from coordinator.commands import checkpoints, leases, retention
from coordinator.commands.events import Appender
from coordinator.database.connections import Database
from coordinator.rpc import requests, responses
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
        self, stream: AsyncIterator[pb.SessionRequest], context: _Context
    ) -> AsyncIterator[pb.SessionResponse]:
        first = await anext(stream, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("a session begins with a hello")
        hello = requests.hello(first.hello)
        try:
            async with self._sessions.open(hello) as session:
                yield responses.welcome(session.welcome, self._timing)
                async with aclosing(session.messages(_heartbeats(hello.agent, session, stream))) as messages:
                    async for message in messages:
                        yield responses.told(message)
        except SessionOver as over:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(over))

    async def StartAttempt(self, request: pb.StartAttemptRequest, context: _Context) -> pb.StartAttemptResponse:
        checkpoint = requests.checkpoint_id(request.checkpoint) if request.checkpoint else None
        lease, skipped = requests.lease_id(request.lease), requests.skipped(request.skipped)
        await leases.start(self._db, lease, request.node, checkpoint, skipped)
        return pb.StartAttemptResponse()

    def AppendEvents(
        self, stream: AsyncIterator[pb.AppendEventsRequest], context: _Context
    ) -> AsyncIterator[pb.AppendEventsResponse]:
        return append_events(self._appender, stream)

    async def RegisterCheckpoint(
        self, request: pb.RegisterCheckpointRequest, context: _Context
    ) -> pb.RegisterCheckpointResponse:
        view = await checkpoints.register(self._db, requests.lease_id(request.lease), requests.new_checkpoint(request))
        return pb.RegisterCheckpointResponse(checkpoint=responses.checkpoint(view))

    async def AddCopy(self, request: pb.AddCopyRequest, context: _Context) -> pb.AddCopyResponse:
        lease, checkpoint = requests.lease_id(request.lease), requests.checkpoint_id(request.checkpoint)
        copy = requests.copy(request.copy)
        if copy.store == "relay":
            await in_thread(check_whole, self._artifacts, copy.uri.removeprefix("relay://"))
        await checkpoints.add_copy(self._db, lease, checkpoint, request.node, copy)
        return pb.AddCopyResponse()

    async def ListRemovals(self, request: pb.ListRemovalsRequest, context: _Context) -> pb.ListRemovalsResponse:
        agent, session_id = requests.agent_name(request.agent), requests.session_id(request.session_id)
        found = await retention.removals(self._db, agent, session_id, self._timing.ttl, scarce=request.disk_low)
        sealed = requests.sealed(request.sealed)
        orphans = set(await retention.orphans(self._db, list(sealed), self._timing.ttl)) if sealed else ()
        return pb.ListRemovalsResponse(
            removals=[responses.removal(each) for each in found],
            orphans=[message for key, message in sealed.items() if key in orphans],
        )

    async def ReportRemovals(self, request: pb.ReportRemovalsRequest, context: _Context) -> pb.ReportRemovalsResponse:
        agent, session_id = requests.agent_name(request.agent), requests.session_id(request.session_id)
        await retention.removed(self._db, agent, session_id, requests.gone(request.removals))
        return pb.ReportRemovalsResponse()

    async def CompleteLease(self, request: pb.CompleteLeaseRequest, context: _Context) -> pb.CompleteLeaseResponse:
        lease, report = requests.lease_id(request.lease), requests.completion(request)
        if report.output and "uri" not in report.output:
            await in_thread(check_whole, self._artifacts, report.output["manifest_digest"])
        state = await leases.complete(self._db, lease, report)
        return pb.CompleteLeaseResponse(state=responses.run_state(state))


async def _heartbeats(
    agent: str, session: LiveSession, stream: AsyncIterator[pb.SessionRequest]
) -> AsyncIterator[Heartbeat]:
    async for request in stream:
        if request.WhichOneof("message") != "heartbeat":
            raise InvalidRequest("after its hello a session sends heartbeats")
        pulse = requests.pulse(agent, session.welcome.session_id, request.heartbeat)
        yield Heartbeat(request.heartbeat.sequence, pulse)

"""A coordinator with a script instead of a database: the real protocol on a real port, with each message recorded.

It fences, orders and counts as the contract says, for one agent. Tests set which leases it desires, and wait for the
messages that they expect.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from relay.errors import (
    DEPLOYMENT,
    BlobUnknown,
    DeploymentForeign,
    DigestMismatch,
    EventsMissing,
    LeaseLost,
    OffsetGap,
    RelayError,
    StartMissing,
)
from relay.timing import TEST, LeaseTiming
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc, artifacts_pb2, artifacts_pb2_grpc, runs_pb2
from storage.manifest import Manifest, digest_bytes

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Lease:
    """The desired and the reported state of one lease."""

    name: str
    assignment: pb.Assignment
    action: pb.DesiredLease.Action.ValueType = pb.DesiredLease.RUN
    reason: pb.DesiredLease.StopReason.ValueType = pb.DesiredLease.STOP_REASON_UNSPECIFIED
    grace: float = 5.0
    held: bool = False
    started: pb.StartAttemptRequest = field(default_factory=pb.StartAttemptRequest)
    starts: int = 0
    sources: dict[str, bytearray] = field(default_factory=dict)
    taken: int = 0  # stretches that moved a cursor
    checkpoints: dict[int, runs_pb2.Checkpoint] = field(default_factory=dict)
    outcome: pb.CompleteLeaseRequest = field(default_factory=pb.CompleteLeaseRequest)

    @property
    def ended(self) -> str:
        """How it was completed: succeeded, stopped, failed, faulted; empty while it was not."""
        return self.outcome.WhichOneof("outcome") or ""

    @property
    def cause(self) -> str:
        """The reason in a failure's or fault's ErrorInfo."""
        error = self.outcome.failed.error if self.ended == "failed" else self.outcome.faulted.error
        info = error_details_pb2.ErrorInfo()
        error.details[0].Unpack(info)
        return str(info.reason)

    def lines(self, source: str = "events") -> list[dict[str, Any]]:
        return [json.loads(line) for line in bytes(self.sources.get(source, b"")).splitlines()]

    def steps(self) -> list[int]:
        """Of its metric lines, in the order of arrival."""
        return [line["step"] for line in self.lines() if line["type"] == "metric"]

    def messages(self) -> str:
        return "\n".join(line["text"] for line in self.lines("agent") if line["type"] == "message")

    def copied(self) -> list[int]:
        """Steps whose checkpoints have a copy in the store."""
        return [
            step
            for step, checkpoint in self.checkpoints.items()
            if any(copy.store == "relay" for copy in checkpoint.parts[0].copies)
        ]


class FakeCoordinator(agents_pb2_grpc.AgentsServicer, artifacts_pb2_grpc.ArtifactsServicer):
    """`async with running() as fake:` listens on `fake.address`."""

    def __init__(self, timing: LeaseTiming = TEST) -> None:
        self.timing = timing
        self.address = ""
        self.deployment = "deployment-1"
        self.leases: dict[str, Lease] = {}
        self.blobs: dict[str, bytes] = {}
        self.partials: dict[str, int] = {}  #: bytes of a blob which go as soon as they were asked for
        self.hellos: list[pb.Hello] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.refuse_hello: RelayError | None = None
        self.refused = 0
        self.answering = True  # heartbeats get beats
        self.answers_ends_late = False  # so that the next wishes overtake the answers
        self.storing = True  # the artifact store takes uploads
        self.removals: list[pb.Removal] = []  # copies that are to go
        self.orphans: set[tuple[str, int]] = set()  # checkpoints by lease and step that nobody will ask for
        self.disk_low = 0  # times that the host said that its disk is low
        self.refused_calls: dict[str, RelayError] = {}  # what the methods of these names answer
        self.meant: set[object] = set()  # deployments that calls under a lease were meant for
        self._version = 0
        self._changed = asyncio.Condition()

    # What a test says and waits for

    async def grant(
        self, spec: dict[str, Any], lease: str = "1" * 32, *, attempt: int = 1, slot: int = 0, **more: Any
    ) -> Lease:
        """Make a lease desired, and return it."""
        run = str(spec["name"])
        assignment = pb.Assignment(
            run=f"runs/{run}",
            attempt=attempt,
            places=[runs_pb2.Place(agent="agents/a", slots=[slot])],
            spec_json=json.dumps(spec),
            slots=[slot],
            on_disconnect=pb.CONTINUE,
        )
        assignment.MergeFrom(pb.Assignment(**more))
        made = Lease(f"runs/{run}/leases/{lease}", assignment)
        self.leases[made.name] = made
        await self._send_desired()
        return made

    async def stop(self, lease: Lease, *, grace: float = 5.0) -> None:
        lease.action, lease.reason, lease.grace = pb.DesiredLease.STOP, pb.DesiredLease.CANCEL, grace
        await self._send_desired()

    async def end(self, lease: Lease) -> None:
        """As a grant elsewhere would: the lease is gone."""
        del self.leases[lease.name]
        await self._send_desired()

    async def until(self, fact: Callable[[], object]) -> None:
        """Until `fact` is true; looked at after everything that happens here."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(fact)

    async def until_beats(self, count: int) -> None:
        """Until that many more heartbeats have come."""
        wanted = len(self.heartbeats) + count
        await self.until(lambda: len(self.heartbeats) >= wanted)

    async def wait_for_anything(self) -> None:
        """Until anything happens here, or a moment has passed: for facts that are no business of ours."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05), self._changed:
                await self._changed.wait()

    async def _send_desired(self) -> None:
        self._version += 1
        await self._happened()

    async def _happened(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def put(self, data: bytes) -> str:
        """Into the artifact store."""
        self.blobs[digest_bytes(data)] = data
        return digest_bytes(data)

    # Agents

    async def Session(
        self, requests: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncIterator[pb.SessionResponse]:
        hello = (await anext(requests)).hello
        if hello.deployment_id not in ("", self.deployment):
            await fail(context, DeploymentForeign())
        if self.refuse_hello:
            self.refused += 1
            await self._happened()
            await fail(context, self.refuse_hello)
        self.hellos.append(hello)
        await self._happened()
        session = f"session-{len(self.hellos)}"
        yield pb.SessionResponse(welcome=self._welcome(session, hello))
        outgoing: asyncio.Queue[int] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._receive(requests, outgoing)), group.create_task(self._push(outgoing))]
            try:
                while (sequence := await outgoing.get()) >= 0:
                    if self.answering:
                        yield pb.SessionResponse(heartbeat_reply=self._beat(session, sequence))
            finally:
                for task in tasks:
                    task.cancel()

    async def _receive(self, requests: AsyncIterator[pb.SessionRequest], outgoing: asyncio.Queue[int]) -> None:
        async for request in requests:
            self.heartbeats.append(request.heartbeat)
            for held in request.heartbeat.held:
                if held.lease in self.leases:
                    self.leases[held.lease].held = True
            outgoing.put_nowait(request.heartbeat.sequence)
            await self._happened()
        outgoing.put_nowait(-1)

    async def _push(self, outgoing: asyncio.Queue[int]) -> None:
        pushed = [0]
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._version != pushed[0])
            pushed[0] = self._version
            outgoing.put_nowait(0)

    def _welcome(self, session: str, hello: pb.Hello) -> pb.Welcome:
        held = [self.leases[each.lease] for each in hello.held if each.lease in self.leases]
        return pb.Welcome(
            session_id=session,
            deployment_id=self.deployment,
            ttl=duration(self.timing.ttl),
            heartbeat_interval=duration(self.timing.heartbeat),
            clock_rate_error=self.timing.rho,
            kill_time=duration(self.timing.kill),
            margin=duration(self.timing.margin),
            leases=[
                pb.LeaseRecord(
                    lease=lease.name,
                    started=lease.starts > 0,
                    cursors=[pb.Cursor(source=name, offset=len(data)) for name, data in lease.sources.items()],
                    checkpoints=lease.checkpoints.values(),
                )
                for lease in held
            ],
        )

    def _beat(self, session: str, sequence: int) -> pb.HeartbeatReply:
        return pb.HeartbeatReply(
            session_id=session,
            desired_version=self._version,
            heartbeat_sequence=sequence,
            leases=[
                pb.DesiredLease(
                    lease=lease.name,
                    action=lease.action,
                    reason=lease.reason,
                    grace=duration(lease.grace),
                    assignment=None if lease.held else lease.assignment,
                )
                for lease in self.leases.values()
                if not lease.ended
            ],
        )

    async def _current(self, name: str, context: Context, call: str) -> Lease:
        self.meant.add(dict(context.invocation_metadata() or ()).get(DEPLOYMENT))
        if call in self.refused_calls:
            self.refused += 1
            await self._happened()
            await fail(context, self.refused_calls[call])
        lease = self.leases.get(name)
        if lease is None or lease.ended:
            await fail(context, LeaseLost())
        assert lease is not None
        return lease

    async def StartAttempt(self, request: pb.StartAttemptRequest, context: Context) -> pb.StartAttemptResponse:
        lease = await self._current(request.lease, context, "StartAttempt")
        lease.started, lease.starts = request, lease.starts + 1
        await self._happened()
        return pb.StartAttemptResponse()

    async def AppendEvents(
        self, requests: AsyncIterator[pb.AppendEventsRequest], context: Context
    ) -> AsyncIterator[pb.AppendEventsResponse]:
        async for request in requests:
            answer = pb.AppendEventsResponse(lease=request.lease, node=request.node, source=request.source)
            try:
                answer.acked_offset = self._append(request)
            except StartMissing as missing:
                await fail(context, missing)
            except RelayError as error:
                answer.refused.CopyFrom(error.status())
            await self._happened()
            yield answer

    def _append(self, request: pb.AppendEventsRequest) -> int:
        lease = self.leases.get(request.lease)
        if lease is None or lease.ended:
            raise LeaseLost()
        if not lease.starts:
            raise StartMissing()
        stored = lease.sources.setdefault(request.source, bytearray())
        if request.offset > len(stored):
            raise OffsetGap(expected=str(len(stored)))
        new = (request.data + b"\0" * request.skipped_bytes)[len(stored) - request.offset :]
        lease.taken += bool(new)
        stored += new
        return len(stored)

    async def RegisterCheckpoint(
        self, request: pb.RegisterCheckpointRequest, context: Context
    ) -> pb.RegisterCheckpointResponse:
        lease = await self._current(request.lease, context, "RegisterCheckpoint")
        if not lease.starts:
            await fail(context, StartMissing())
        for cursor in request.required_cursors:
            if len(lease.sources.get(cursor.source, b"")) < cursor.offset:
                await fail(context, EventsMissing())
        part = runs_pb2.CheckpointPart(
            manifest_digest=request.manifest_digest, size=request.size, copies=request.copies
        )
        name = f"{lease.assignment.run}/checkpoints/{lease.name[-8:]}-{request.step}"
        attempt = lease.assignment.attempt
        made = runs_pb2.Checkpoint(name=name, lease=lease.name, attempt=attempt, step=request.step, parts=[part])
        lease.checkpoints.setdefault(request.step, made)
        await self._happened()
        return pb.RegisterCheckpointResponse(checkpoint=made)

    async def ListRemovals(self, request: pb.ListRemovalsRequest, context: Context) -> pb.ListRemovalsResponse:
        if refusal := self.refused_calls.get("ListRemovals"):
            await fail(context, refusal)
        self.disk_low += request.disk_low
        await self._happened()
        orphans = [each for each in request.sealed if (each.lease, each.step) in self.orphans]
        return pb.ListRemovalsResponse(removals=self.removals, orphans=orphans)

    async def ReportRemovals(self, request: pb.ReportRemovalsRequest, context: Context) -> pb.ReportRemovalsResponse:
        self.removals = [each for each in self.removals if each not in request.removals]
        await self._happened()
        return pb.ReportRemovalsResponse()

    async def AddCopy(self, request: pb.AddCopyRequest, context: Context) -> pb.AddCopyResponse:
        lease = await self._current(request.lease, context, "AddCopy")
        lease.checkpoints[int(request.checkpoint.rpartition("-")[2])].parts[0].copies.append(request.copy)
        await self._happened()
        return pb.AddCopyResponse()

    async def CompleteLease(self, request: pb.CompleteLeaseRequest, context: Context) -> pb.CompleteLeaseResponse:
        lease = await self._current(request.lease, context, "CompleteLease")
        for cursor in request.final_cursors:
            if len(lease.sources.get(cursor.source, b"")) < cursor.offset:
                await fail(context, EventsMissing())
        lease.outcome = request
        await self._send_desired()
        if self.answers_ends_late:
            await self.until_beats(3)
        return pb.CompleteLeaseResponse(state=runs_pb2.Run.QUEUED)

    # Artifacts

    async def StatBlobs(
        self, request: artifacts_pb2.StatBlobsRequest, context: Context
    ) -> artifacts_pb2.StatBlobsResponse:
        stats = [
            artifacts_pb2.BlobStat(digest=digest, complete=digest in self.blobs, offset=self.partials.pop(digest, 0))
            for digest in request.digests
        ]
        return artifacts_pb2.StatBlobsResponse(blobs=stats)

    async def PutBlob(
        self, requests: AsyncIterator[artifacts_pb2.PutBlobRequest], context: Context
    ) -> artifacts_pb2.PutBlobResponse:
        header = (await anext(requests)).header
        data = b"".join([request.chunk async for request in requests])
        if not self.storing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        if header.offset:
            await fail(context, OffsetGap("the store has 0 bytes of it", expected="0"))
        if digest_bytes(data) != header.digest or len(data) != header.size:
            await fail(context, DigestMismatch())
        self.blobs[header.digest] = data
        await self._happened()
        return artifacts_pb2.PutBlobResponse(digest=header.digest, size=header.size)

    async def GetBlob(
        self, request: artifacts_pb2.GetBlobRequest, context: Context
    ) -> AsyncIterator[artifacts_pb2.GetBlobResponse]:
        if request.digest not in self.blobs:
            await fail(context, BlobUnknown())
        if request.verify and digest_bytes(self.blobs[request.digest]) != request.digest:
            del self.blobs[request.digest]
            await fail(context, DigestMismatch())
        data = self.blobs[request.digest][request.offset :]
        for at in range(0, len(data), 1000):
            yield artifacts_pb2.GetBlobResponse(chunk=data[at : at + 1000])

    def folder(self, manifest_digest: str) -> dict[str, bytes]:
        """The files of a stored folder."""
        manifest = Manifest.from_bytes(self.blobs[manifest_digest])
        return {file.path: self.blobs[file.digest] for file in manifest.files}


async def fail(context: Context, error: RelayError) -> None:
    """As the real one's interceptor does."""
    await context.abort_with_status(rpc_status.to_status(error.status()))


def duration(seconds: float) -> Duration:
    made = Duration()
    made.FromMicroseconds(int(seconds * 1e6))
    return made


@asynccontextmanager
async def running(timing: LeaseTiming = TEST, **options: int) -> AsyncIterator[FakeCoordinator]:
    """A fake coordinator on a port of the kernel's choosing; `options` are gRPC's, without their prefix."""
    fake = FakeCoordinator(timing)
    server = grpc.aio.server(options=[(f"grpc.{name}", value) for name, value in options.items()])
    agents_pb2_grpc.add_AgentsServicer_to_server(fake, server)
    artifacts_pb2_grpc.add_ArtifactsServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)

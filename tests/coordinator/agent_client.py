"""A scripted agent: speaks the contract over real gRPC, one step at a time, and does only what a test tells it."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from google.rpc import status_pb2
from grpc import aio

from relay.v1 import agents_pb2 as pb
from relay.v1 import fleet_pb2, runs_pb2
from relay.v1.agents_pb2_grpc import AgentsStub

DIGEST = "sha256:" + "0" * 64
PATIENCE = 90.0  # seconds, for anything that must come
HEARTBEAT = 1.0  # seconds between two heartbeats of an agent that waits for a lease


class ScriptedAgent:
    """One process of one host. `held` is what it lists in its next heartbeat."""

    def __init__(self, stub: AgentsStub, name: str, *, boot: str = "boot-1", instance: str = "", gpus: int = 0) -> None:
        self.stub, self.name, self.boot = stub, name, boot
        self.instance = instance or uuid.uuid4().hex
        self.capability = fleet_pb2.Capability(
            hostname=name, cpus=2, memory_bytes=8 << 30, disk_bytes=64 << 30, slots=1,
            gpus=[fleet_pb2.Gpu(index=index, memory_bytes=80 << 30) for index in range(gpus)],
        )  # fmt: skip
        self.held: dict[str, pb.HeldLease] = {}
        self.readiness = pb.Readiness(ready=True)
        self.deployment = ""
        self.replies: list[pb.HeartbeatReply] = []
        self._sequence = 0
        self._call: Any = None

    async def hello(self) -> pb.Welcome:
        """Opens a session, and reads its welcome."""
        self._call = self.stub.Session()
        self._sequence = 0
        message = pb.Hello(
            agent=f"agents/{self.name}", instance_id=self.instance, boot_id=self.boot, deployment_id=self.deployment,
            capability=self.capability, held=self.held.values(), readiness=self.readiness,
        )  # fmt: skip
        await self._call.write(pb.SessionRequest(hello=message))
        return (await self._read()).welcome

    async def heartbeat(self) -> pb.HeartbeatReply:
        """Send a heartbeat and return the reply to it."""
        await self._send()
        return await self.until(lambda reply: reply.heartbeat_sequence == self._sequence)

    async def say(self, sequence: int, *held: pb.HeldLease) -> None:
        """Sends a heartbeat of this number, and awaits nothing."""
        heartbeat = pb.Heartbeat(sequence=sequence, held=held, readiness=self.readiness)
        await self._call.write(pb.SessionRequest(heartbeat=heartbeat))

    async def wait(self) -> bool:
        """Send a heartbeat; return True once the coordinator answers that it cannot read its database."""
        await self._send()
        while (response := await self._read()).WhichOneof("message") == "heartbeat_reply":
            assert response.heartbeat_reply.heartbeat_sequence == 0, "it was answered"
        return response.wait.heartbeat_sequence == self._sequence

    async def _send(self) -> None:
        self._sequence += 1
        await self.say(self._sequence, *self.held.values())

    async def until(self, wanted: Callable[[pb.HeartbeatReply], bool]) -> pb.HeartbeatReply:
        """Read replies until one fulfils the condition, and return it."""
        while True:
            response = await self._read()
            assert response.WhichOneof("message") == "heartbeat_reply", response
            self.replies.append(response.heartbeat_reply)
            if wanted(response.heartbeat_reply):
                return response.heartbeat_reply

    async def assigned(self) -> pb.DesiredLease:
        """Return the first desired lease that the agent does not list, as soon as a reply brings it."""
        async with self._responding():
            reply = await self.until(lambda reply: any(lease.lease not in self.held for lease in reply.leases))
        return next(lease for lease in reply.leases if lease.lease not in self.held)

    @asynccontextmanager
    async def _responding(self) -> AsyncIterator[None]:
        """Send heartbeats meanwhile: on a busy machine the wait may be longer than a host without them is granted
        leases.
        """
        over = asyncio.Event()

        async def respond() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), HEARTBEAT)
                    return
                await self._send()

        responding = asyncio.create_task(respond())
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(responding, return_exceptions=True)  # not cancelled: that would end the call

    async def next_lease(self) -> pb.DesiredLease:
        """Sends a heartbeat; the lease that is assigned with its answer or soon after."""
        reply = await self.heartbeat()
        return next((lease for lease in reply.leases if lease.lease not in self.held), None) or await self.assigned()

    async def take(self) -> pb.DesiredLease:
        """Accept the assigned lease, list it, and start it from the beginning."""
        desired = await self.assigned()
        self.list_lease(desired)
        await self.heartbeat()
        return desired

    def list_lease(self, desired: pb.DesiredLease, phase: pb.HeldLease.Phase.ValueType = pb.HeldLease.RUNNING) -> None:
        """Lists a lease from the next heartbeat on."""
        self.held[desired.lease] = pb.HeldLease(
            lease=desired.lease, node=desired.assignment.node, phase=phase, slots=desired.assignment.slots
        )

    async def start(self, lease: str, checkpoint: str = "", skipped: Iterable[runs_pb2.SkippedCheckpoint] = ()) -> None:
        """An attempt's first write."""
        await self.stub.StartAttempt(pb.StartAttemptRequest(lease=lease, checkpoint=checkpoint, skipped=skipped))

    async def save(
        self, lease: str, step: int, *, digest: str = DIGEST, after: int = 0, evaluation_due: bool = False
    ) -> runs_pb2.Checkpoint:
        """Registers a checkpoint that lies on its own disk."""
        copy = runs_pb2.Copy(store="host", uri=f"host://agents/{self.name}")
        request = pb.RegisterCheckpointRequest(
            lease=lease, step=step, manifest_digest=digest, size=10, files=1, copies=[copy],
            required_cursors=[pb.Cursor(source="events", offset=after)], evaluation_due=evaluation_due,
        )  # fmt: skip
        return (await self.stub.RegisterCheckpoint(request)).checkpoint

    async def complete(self, lease: str, **outcome: Any) -> runs_pb2.Run.State.ValueType:
        """Reports how an attempt ended, and lists it no longer."""
        response = await self.stub.CompleteLease(pb.CompleteLeaseRequest(lease=lease, **outcome))
        self.held.pop(lease, None)
        return response.state

    async def hang_up(self) -> None:
        """Ends the stream in good order."""
        await self._call.done_writing()
        while await self._call.read() is not aio.EOF:
            pass

    def vanish(self) -> None:
        """Ends the stream as a host does that loses power."""
        self._call.cancel()

    async def _read(self) -> pb.SessionResponse:
        async with asyncio.timeout(PATIENCE):
            response = await self._call.read()
        if response is aio.EOF:
            await self._call  # raises what the stream ended with
            raise AssertionError("the coordinator ended the stream without saying why")
        message: pb.SessionResponse = response
        return message


@asynccontextmanager
async def connected(stub: AgentsStub, *names: str, **options: Any) -> AsyncIterator[list[ScriptedAgent]]:
    """Agents with open sessions."""
    agents = [ScriptedAgent(stub, name, **options) for name in names]
    for agent in agents:
        await agent.hello()
    try:
        yield agents
    finally:
        for agent in agents:
            agent.vanish()


SUCCEEDED = {"succeeded": pb.Succeeded()}
FAULTED = {"faulted": pb.Faulted(error=status_pb2.Status(code=13, message="the disk is full"))}
LEAVING = {"stopped": pb.Stopped(cause=pb.Stopped.LEAVING)}
STOPPED = {"stopped": pb.Stopped(cause=pb.Stopped.REQUESTED)}


def failed(message: str = "exit code 1", *, permanent: bool = False) -> dict[str, pb.Failed]:
    """An outcome of the run's own fault."""
    return {"failed": pb.Failed(error=status_pb2.Status(code=2, message=message), permanent=permanent)}

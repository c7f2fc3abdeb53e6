"""The session with the coordinator, and the one loop that reconnects.

    dial → hello (what is held) → welcome → heartbeat ⇄ beat … → broken → wait, with full jitter → dial

A session says what this host holds and hears what is wished of it. It decides nothing itself: it hands what it hears
to its `Host` (the supervisor), and asks it what to say. A transport that lives proves nothing: when no heartbeat was
answered for two heartbeats' time, it dials again. Every dial is a new connection, so a proxy can send it to another
replica.

Clock, transport and randomness come from outside.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Never, Protocol

import grpc

from agent import wire
from agent.coordinator_client import Contact, Coordinator
from agent.folder import write_atomically
from agent.leases import HeartbeatReply, SessionState
from relay.backoff import Backoff
from relay.errors import DeploymentForeign, IdentityInUse, RelayError, Unauthenticated, from_rpc
from relay.logs import get_logger
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc

log = get_logger(__name__)

WELCOME = 10.0  #: seconds that dialling and being welcomed may take
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  #: seconds; bounds of the waits before the first redial, and before any


class StreamBroken(Exception):
    """The stream ended or fell silent without saying that the session is over."""


class SessionStream(Protocol):
    """One stream of session messages."""

    async def send(self, message: pb.SessionRequest) -> None:
        """Raises StreamBroken or RelayError."""

    async def receive(self) -> pb.SessionResponse:
        """Raises StreamBroken or RelayError."""


class LeaseHolder(Protocol):
    """What a session speaks for."""

    changed: asyncio.Event  #: set when what is held, or readiness, is no longer what was last told

    @property
    def busy(self) -> bool:
        """Whether it holds any lease."""

    def hello(self) -> pb.Hello:
        """Who is calling, without instance, boot and deployment ids."""

    def heartbeat(self) -> pb.Heartbeat:
        """What is held, and how the host is; its sequence number is set here."""

    def welcomed(self, welcome: pb.Welcome, timing: LeaseTiming) -> None:
        """A session has begun."""

    def wished(self, beat: HeartbeatReply, standing: SessionState) -> SessionState:
        """A beat that counts; the session's standing after it."""


Dial = Callable[[], AbstractAsyncContextManager[SessionStream]]


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """Who this agent process is: `instance` is random per process, `boot` the kernel's boot id."""

    instance: str
    boot: str
    remembered: Path  #: file with the id of the deployment this host has worked for

    def deployment(self) -> str:
        """Empty the first time."""
        return self.remembered.read_text().strip() if self.remembered.exists() else ""

    def recognise(self, deployment: str) -> None:
        """Remember the deployment; DeploymentForeign when another one is remembered."""
        known = self.deployment()
        if known and known != deployment:
            raise DeploymentForeign(f"this host works for deployment {known}, and {deployment} answered")
        if not known:
            self.remembered.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.remembered, deployment.encode() + b"\n")


class Session:
    """Keeps one session open for as long as this process lives."""

    def __init__(
        self,
        host: LeaseHolder,
        identity: AgentIdentity,
        contact: Contact,
        *,
        dial: Dial,
        now: Callable[[], float],
        random: Random,
    ) -> None:
        self._host = host
        self._identity = identity
        self._contact = contact
        self._dial = dial
        self._now = now
        self._random = random
        self._standing = SessionState("", 0.0)
        self._backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE, random)
        self._dials = 0  # numbered hellos: the network may bring one after a later one
        self._said = ""  # the last reason a line broke; a thousand redials are one line in the log

    async def run(self) -> Never:
        """Until cancelled. Raises SessionReplaced, DeploymentForeign or Unauthenticated: no redial can help.

        While trainers run here the latter two are tried again as well: a coordinator started with a wrong database or
        secret must not end a fleet.
        """
        while True:
            try:
                await self._converse()
            except StreamBroken as error:
                self._say(str(error), level=logging.WARNING)
            except (IdentityInUse, DeploymentForeign, Unauthenticated) as error:
                if not isinstance(error, IdentityInUse) and not self._host.busy:
                    raise
                self._say(str(error), level=logging.ERROR)
            await asyncio.sleep(self._backoff.next_pause())

    def _say(self, reason: str, *, level: int) -> None:
        if reason != self._said:
            log.log(level, "session broken", reason=reason)
        self._said = reason

    async def _converse(self) -> None:
        async with self._dial() as line:
            timing = await self._open(line)
            async with require_answers(2 * timing.heartbeat) as renew:
                await self._talk(line, timing.heartbeat, renew)

    async def _open(self, line: SessionStream) -> LeaseTiming:
        hello = self._host.hello()
        hello.instance_id, hello.boot_id = self._identity.instance, self._identity.boot
        hello.deployment_id = self._identity.deployment()
        self._dials += 1
        hello.dial = self._dials
        sent = self._now()
        async with require_answers(WELCOME) as renew:
            await line.send(pb.SessionRequest(hello=hello))
            while (answer := await line.receive()).WhichOneof("message") == "wait":
                self._contact.heard()
                renew()
        if answer.WhichOneof("message") != "welcome":
            raise StreamBroken("the coordinator did not begin with a welcome")
        return self._opened(answer.welcome, sent, frozenset(held.lease for held in hello.held))

    def _opened(self, welcome: pb.Welcome, sent: float, held: frozenset[str]) -> LeaseTiming:
        self._identity.recognise(welcome.deployment_id)
        try:
            timing = wire.timing(welcome)
        except ValueError as error:
            raise StreamBroken(f"the coordinator's timing cannot work: {error}") from error
        self._standing = SessionState(welcome.session_id, sent, held)
        self._backoff = Backoff(FIRST_PAUSE, min(LONGEST_PAUSE, 2 * timing.heartbeat), self._random)
        self._said = ""
        self._host.welcomed(welcome, timing)
        self._contact.heard()
        log.info("session opened", session=welcome.session_id, held=len(held))
        return timing

    async def _talk(self, line: SessionStream, interval: float, renew: Callable[[], None]) -> None:
        speaking = asyncio.create_task(self._speak(line, interval))
        listening = asyncio.create_task(self._listen(line, renew))
        try:
            done, _ = await asyncio.wait({speaking, listening}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            speaking.cancel()
            listening.cancel()
            await asyncio.gather(speaking, listening, return_exceptions=True)

    async def _speak(self, line: SessionStream, interval: float) -> Never:
        """A heartbeat at each interval, and at once when something changed."""
        for sequence in itertools.count(1):
            self._host.changed.clear()
            heartbeat = self._host.heartbeat()
            heartbeat.sequence = sequence
            leases = [held.lease for held in heartbeat.held]
            self._standing = self._standing.sending(sequence, self._now(), leases)
            await line.send(pb.SessionRequest(heartbeat=heartbeat))
            try:
                async with asyncio.timeout(interval):
                    await self._host.changed.wait()
            except TimeoutError:
                continue
        raise AssertionError("never reached")

    async def _listen(self, line: SessionStream, renew: Callable[[], None]) -> Never:
        while True:
            message = await line.receive()
            self._contact.heard()
            match message.WhichOneof("message"):
                case "heartbeat_reply":
                    if self._hear(wire.beat(message.heartbeat_reply)):
                        renew()
                case "wait":
                    self._standing = self._standing.waited(message.wait.heartbeat_sequence)
                    renew()
                case unexpected:
                    raise StreamBroken(f"unexpected {unexpected} in an open session")

    def _hear(self, beat: HeartbeatReply) -> bool:
        """True when the beat answers a heartbeat of ours."""
        answers = beat.session_id == self._standing.session_id and beat.answers in self._standing.sent
        if self._standing.accepts(beat):
            self._standing = self._host.wished(beat, self._standing)
        return answers


@asynccontextmanager
async def require_answers(patience: float) -> AsyncIterator[Callable[[], None]]:
    """StreamBroken unless the renewal it gives is called at least every `patience` seconds."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(patience) as limit:
            yield lambda: limit.reschedule(loop.time() + patience)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise StreamBroken(f"no answer for {patience:g} s") from error


class _Call:
    """A session's line over gRPC."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]) -> None:
        self._call = call

    async def send(self, message: pb.SessionRequest) -> None:
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._failure() from error

    async def receive(self) -> pb.SessionResponse:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _meaning(error) from error
        if not isinstance(message, pb.SessionResponse):  # grpc.aio.EOF
            raise StreamBroken("the coordinator ended the stream")
        return message

    async def _failure(self) -> Exception:
        """Why nothing more can be written: what the call ended with."""
        try:
            await self._call.read()
        except grpc.aio.AioRpcError as error:
            return _meaning(error)
        return StreamBroken("the coordinator ended the stream")


def _meaning(error: grpc.aio.AioRpcError) -> RelayError | StreamBroken:
    return from_rpc(error) or StreamBroken(f"{error.code().name}: {error.details()}")


def grpc_dial(coordinator: Coordinator) -> Dial:
    """Lines to a coordinator, each on a connection of its own."""

    @asynccontextmanager
    async def dial() -> AsyncIterator[SessionStream]:
        async with coordinator.dial() as channel:
            call = agents_pb2_grpc.AgentsStub(channel).Session(metadata=coordinator.metadata)
            try:
                yield _Call(call)
            finally:
                call.cancel()

    return dial

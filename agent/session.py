"""The session with the coordinator, and the only loop that reconnects.

    dial → hello (what is held) → welcome → heartbeat ⇄ heartbeat reply … → broken → wait, with full jitter → dial

A session reports which leases this host holds and receives which are desired. It decides nothing itself: it gives each
reply to its `LeaseHolder` (the supervisor), and asks it for the next heartbeat. A connection that is open proves
nothing: when no heartbeat was answered within the time of two, the session dials again. Every dial makes a new
connection, so a proxy can send it to another replica.

Clock, transport and randomness are passed in.
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

WELCOME = 10.0  #: seconds from dialling to the welcome, at most
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  #: seconds; upper bounds of the pause before the first redial, and before any


class StreamBroken(Exception):
    """The stream ended, or brought no answer in time, and the session is not over."""


class SessionStream(Protocol):
    """One bidirectional stream of session messages."""

    async def send(self, message: pb.SessionRequest) -> None:
        """Send a message; raise StreamBroken or RelayError when the stream has ended."""

    async def receive(self) -> pb.SessionResponse:
        """Return the next message; raise StreamBroken or RelayError when the stream has ended."""


class LeaseHolder(Protocol):
    """The holder of this host's leases, which a session reports on."""

    changed: asyncio.Event  #: set when the held leases or the readiness differ from the last heartbeat

    @property
    def busy(self) -> bool:
        """Whether any lease is held."""

    def hello(self) -> pb.Hello:
        """Return the hello, to which the session adds the ids of instance, boot and deployment."""

    def heartbeat(self) -> pb.Heartbeat:
        """Return a heartbeat with the held leases and the host's readings; the session sets its sequence number."""

    def start_session(self, welcome: pb.Welcome, timing: LeaseTiming) -> None:
        """Take over what the welcome says of the held leases, and the timing of leases."""

    def apply_reply(self, reply: HeartbeatReply, state: SessionState) -> SessionState:
        """Carry out a reply that counts, and return the session's state after it."""


Dial = Callable[[], AbstractAsyncContextManager[SessionStream]]


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """The identity of this agent process: `instance` is random per process, `boot` the kernel's boot id."""

    instance: str
    boot: str
    remembered: Path  #: file with the id of the deployment this host has worked for

    def deployment(self) -> str:
        """Return the remembered id of the deployment, empty the first time."""
        return self.remembered.read_text().strip() if self.remembered.exists() else ""

    def recognise(self, deployment: str) -> None:
        """Remember the deployment; raise DeploymentForeign when another one is remembered."""
        known = self.deployment()
        if known and known != deployment:
            raise DeploymentForeign(f"this host works for deployment {known}, and {deployment} answered")
        if not known:
            self.remembered.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.remembered, deployment.encode() + b"\n")


class Session:
    """Keeps one session open while this process lives."""

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
        self._state = SessionState("", 0.0)
        self._backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE, random)
        self._dials = 0  # hellos are numbered, since the network may deliver one after a later one
        self._last_reason = ""  # why the last session broke: a thousand redials for one reason are one line in the log

    async def run(self) -> Never:
        """Keep a session open until cancelled.

        Raises SessionReplaced, DeploymentForeign or Unauthenticated, which no redial can cure. While trainers run here,
        the latter two are retried: a coordinator that was started with a wrong database or secret must not end a fleet.
        IdentityInUse is always retried, since the other holder of the name may leave.
        """
        while True:
            try:
                await self._run_once()
            except StreamBroken as error:
                self._log_broken(str(error), level=logging.WARNING)
            except (IdentityInUse, DeploymentForeign, Unauthenticated) as error:
                if not isinstance(error, IdentityInUse) and not self._host.busy:
                    raise
                self._log_broken(str(error), level=logging.ERROR)
            await asyncio.sleep(self._backoff.next_pause())

    def _log_broken(self, reason: str, *, level: int) -> None:
        if reason != self._last_reason:
            log.log(level, "session broken", reason=reason)
        self._last_reason = reason

    async def _run_once(self) -> None:
        async with self._dial() as stream:
            timing = await self._exchange_hello(stream)
            async with require_answers(2 * timing.heartbeat) as renew:
                await self._exchange_heartbeats(stream, timing.heartbeat, renew)

    async def _exchange_hello(self, stream: SessionStream) -> LeaseTiming:
        hello = self._host.hello()
        hello.instance_id, hello.boot_id = self._identity.instance, self._identity.boot
        hello.deployment_id = self._identity.deployment()
        self._dials += 1
        hello.dial = self._dials
        sent = self._now()
        async with require_answers(WELCOME) as renew:
            await stream.send(pb.SessionRequest(hello=hello))
            while (answer := await stream.receive()).WhichOneof("message") == "wait":
                self._contact.record_reply()
                renew()
        if answer.WhichOneof("message") != "welcome":
            raise StreamBroken("the coordinator did not begin with a welcome")
        return self._accept_welcome(answer.welcome, sent, frozenset(held.lease for held in hello.held))

    def _accept_welcome(self, welcome: pb.Welcome, sent: float, held: frozenset[str]) -> LeaseTiming:
        self._identity.recognise(welcome.deployment_id)
        try:
            timing = wire.parse_timing(welcome)
        except ValueError as error:
            raise StreamBroken(f"the coordinator's timing cannot work: {error}") from error
        self._state = SessionState(welcome.session_id, sent, held)
        self._backoff = Backoff(FIRST_PAUSE, min(LONGEST_PAUSE, 2 * timing.heartbeat), self._random)
        self._last_reason = ""
        self._host.start_session(welcome, timing)
        self._contact.record_reply()
        log.info("session opened", session=welcome.session_id, held=len(held))
        return timing

    async def _exchange_heartbeats(self, stream: SessionStream, interval: float, renew: Callable[[], None]) -> None:
        sending = asyncio.create_task(self._send_heartbeats(stream, interval))
        receiving = asyncio.create_task(self._receive_replies(stream, renew))
        try:
            done, _ = await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _send_heartbeats(self, stream: SessionStream, interval: float) -> Never:
        """Send a heartbeat every `interval` seconds, and at once when something changed."""
        for sequence in itertools.count(1):
            self._host.changed.clear()
            heartbeat = self._host.heartbeat()
            heartbeat.sequence = sequence
            leases = [held.lease for held in heartbeat.held]
            self._state = self._state.record_sent(sequence, self._now(), leases)
            await stream.send(pb.SessionRequest(heartbeat=heartbeat))
            try:
                async with asyncio.timeout(interval):
                    await self._host.changed.wait()
            except TimeoutError:
                continue
        raise AssertionError("never reached")

    async def _receive_replies(self, stream: SessionStream, renew: Callable[[], None]) -> Never:
        while True:
            message = await stream.receive()
            self._contact.record_reply()
            match message.WhichOneof("message"):
                case "heartbeat_reply":
                    if self._apply_reply(wire.parse_heartbeat_reply(message.heartbeat_reply)):
                        renew()
                case "wait":
                    self._state = self._state.record_wait(message.wait.heartbeat_sequence)
                    renew()
                case unexpected:
                    raise StreamBroken(f"unexpected {unexpected} in an open session")

    def _apply_reply(self, reply: HeartbeatReply) -> bool:
        """Apply a reply, and return whether it answers a heartbeat of this session."""
        answers = reply.session_id == self._state.session_id and reply.answers in self._state.sent
        if self._state.accepts(reply):
            self._state = self._host.apply_reply(reply, self._state)
        return answers


@asynccontextmanager
async def require_answers(limit: float) -> AsyncIterator[Callable[[], None]]:
    """Raise StreamBroken unless the function that this yields is called at least every `limit` seconds."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit) as timer:
            yield lambda: timer.reschedule(loop.time() + limit)
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise StreamBroken(f"no answer for {limit:g} s") from error


class _GrpcStream:
    """A session's stream over gRPC."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]) -> None:
        self._call = call

    async def send(self, message: pb.SessionRequest) -> None:
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._read_failure() from error

    async def receive(self) -> pb.SessionResponse:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _interpret_error(error) from error
        if not isinstance(message, pb.SessionResponse):  # grpc.aio.EOF
            raise StreamBroken("the coordinator ended the stream")
        return message

    async def _read_failure(self) -> Exception:
        """Return the error that the call ended with, which is why nothing more can be written."""
        try:
            await self._call.read()
        except grpc.aio.AioRpcError as error:
            return _interpret_error(error)
        return StreamBroken("the coordinator ended the stream")


def _interpret_error(error: grpc.aio.AioRpcError) -> RelayError | StreamBroken:
    return from_rpc(error) or StreamBroken(f"{error.code().name}: {error.details()}")


def grpc_dial(coordinator: Coordinator) -> Dial:
    """Return a `Dial` that opens each stream to a coordinator on a connection of its own."""

    @asynccontextmanager
    async def dial() -> AsyncIterator[SessionStream]:
        async with coordinator.dial() as channel:
            call = agents_pb2_grpc.AgentsStub(channel).Session(metadata=coordinator.metadata)
            try:
                yield _GrpcStream(call)
            finally:
                call.cancel()

    return dial

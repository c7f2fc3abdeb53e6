"""The agent as a whole: services, and one task for each lease that this host holds.

    session ──heartbeat replies──► plan(held, desired) ──► start · stop · drop ──► attempts ──► shims ──► trainers

A service never returns; when one crashes, the agent crashes too, and its trainers continue under their shims until it
is started again. Cancelling an attempt's task detaches from it: its trainer continues. An agent ends in three ways:
`leave` (save, publish, release, exit), `detach` (only the agent ends), and a session that ends because another agent
has taken this one's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from agent.attempt.attempt import Attempt
from agent.attempt.completion import complete_lease, make_stopped
from agent.attempt.exit_classification import StopCause, StopDirective
from agent.context import AttemptContext
from agent.folder import AttemptFolder
from agent.leases import HeartbeatReply, SessionState, Term, plan
from agent.shim_client.shims import Shim, ShimError, ShimGone
from agent.wire import Assignment
from relay.errors import LeaseLost
from relay.logs import bind, get_logger, name_fields
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2 as pb
from relay.v1 import fleet_pb2

log = get_logger(__name__)

CUT_OFF = 30.0  #: seconds without a reply, beyond the budget, after which a leaving agent gives up on the coordinator
DISCONNECT_GRACE = 60.0  #: seconds that a trainer has to save when the coordinator has been away for too long

Service = Callable[[], Coroutine[Any, Any, None]]  #: never returns


class ExitRequest(enum.Enum):
    """How an agent ends."""

    LEAVE = enum.auto()  #: save, publish, release, exit
    DETACH = enum.auto()  #: only the agent ends


class Supervisor:
    """Holds the leases of this host, one task each; its session reports on them."""

    def __init__(
        self,
        context: AttemptContext,
        hello: pb.Hello,
        readings: Callable[[], fleet_pb2.Readings],
        *,
        disconnect_limit: float,
    ) -> None:
        self._context = context
        self._hello = hello
        self._readings = readings
        self._disconnect_limit = disconnect_limit
        self._attempts: dict[str, Attempt] = {}
        self._started: set[str] = set()
        self._declining: set[str] = set()
        self._terms: dict[str, Term] = {}
        self._timing: LeaseTiming | None = None
        self._leaving = False
        self._over = False
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.changed = asyncio.Event()

    # What the session calls

    @property
    def busy(self) -> bool:
        """Whether any lease is held."""
        return bool(self._attempts)

    def hello(self) -> pb.Hello:
        """Return the hello, to which the session adds the ids."""
        hello = pb.Hello()
        hello.CopyFrom(self._hello)
        hello.held.extend(self._held())
        hello.readiness.CopyFrom(self._readiness())
        return hello

    def heartbeat(self) -> pb.Heartbeat:
        """Return a heartbeat with all held leases, every time."""
        return pb.Heartbeat(held=self._held(), readings=self._readings(), readiness=self._readiness())

    def _held(self) -> list[pb.HeldLease]:
        return [attempt.describe() for attempt in self._attempts.values()]

    def _readiness(self) -> pb.Readiness:
        reason = "leaving" if self._leaving else ""
        return pb.Readiness(ready=not self._leaving, leaving=self._leaving, reason=reason)

    def start_session(self, welcome: pb.Welcome, timing: LeaseTiming) -> None:
        """Take over the timing of a new session, and send again what the coordinator lacks of the held leases."""
        self._timing = timing
        self._context.spool.window.heartbeat = timing.heartbeat
        self._context.remover.start_session(welcome.session_id, timing.heartbeat)
        for record in welcome.leases:
            if attempt := self._attempts.get(record.lease):
                attempt.sync(record)

    def apply_reply(self, reply: HeartbeatReply, state: SessionState) -> SessionState:
        """Start, stop and drop leases until the held ones are the desired ones, and return the session's state."""
        state, self._terms = state.apply_reply(reply, self._terms)
        todo = plan(self._attempts, reply.desired, frozenset(self._started))
        for lease in sorted(todo.drop):
            self._attempts[lease].drop()
        for lease in sorted(todo.stop):
            desired = reply.desired[lease]
            self._attempts[lease].stop(StopDirective(StopCause.REQUESTED, desired.grace, desired.reason.name.lower()))
        for lease in sorted(todo.start):
            work = reply.desired[lease].work
            assert isinstance(work, Assignment)
            if self._leaving:  # granted before the coordinator knew
                self._decline(lease, StopCause.LEAVING)
            elif not self._busy(work.slots):  # a later reply names it again
                self._start_attempt(work)
        for lease in sorted(todo.decline):
            self._decline(lease, StopCause.REQUESTED)
        self._extend_trust()
        return state

    def _extend_trust(self) -> None:
        assert self._timing is not None
        for lease, term in self._terms.items():
            if lease in self._attempts:
                self._attempts[lease].extend_trust(term.stop_at(self._timing))

    # The agent's life

    async def run(self, services: Iterable[Service], exit_requests: asyncio.Queue[ExitRequest], budget: float) -> None:
        """Run until `exit_requests` says how to end. `budget` is how many seconds leaving may take."""
        rejoined, useless = await self._rejoin()
        await self._retire_others(
            {attempt.assignment.lease for attempt in rejoined} | {shim.record.lease for shim in useless}
        )
        async with asyncio.TaskGroup() as self._group:
            for attempt in rejoined:
                self._add_attempt(attempt)
            for shim in useless:
                self._spawn(self._reap_shim(shim))
            for service in (*services, self._stop_when_cut_off):
                self._spawn(service())
            if await exit_requests.get() is ExitRequest.LEAVE:
                await self._leave(exit_requests, budget)
            self._over = True
            for task in self._tasks:
                task.cancel()

    async def _leave(self, exit_requests: asyncio.Queue[ExitRequest], budget: float) -> None:
        """Save within the budget, publish and release; a second request hurries, a detach ends only the agent."""
        log.info("agent leaving", leases=len(self._attempts), budget=budget)
        self._leaving = True
        self.changed.set()
        for attempt in self._attempts.values():
            attempt.leave(budget)
        ways = {
            asyncio.create_task(self._wait_idle(budget + CUT_OFF)),
            asyncio.create_task(self._hurry_attempts(exit_requests)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()

    async def _wait_idle(self, limit: float) -> None:
        """Wait until no lease is held, or until the coordinator has not replied for `limit` seconds."""
        while not self._idle.is_set() and (rest := limit - self._context.contact.seconds_without_reply) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._idle.wait()
        if self._attempts:
            log.error("leases left unfinished", leases=",".join(self._attempts))

    async def _hurry_attempts(self, exit_requests: asyncio.Queue[ExitRequest]) -> None:
        """Hurry all attempts at each further request to leave; return when one says to detach."""
        while await exit_requests.get() is ExitRequest.LEAVE:
            for attempt in self._attempts.values():
                attempt.hurry()

    async def _stop_when_cut_off(self) -> None:
        """Stop all trainers when the coordinator was away for too long: somebody pays for this host."""
        while True:
            rest = self._disconnect_limit - self._context.contact.seconds_without_reply
            if rest > 0:
                await asyncio.sleep(rest)
                continue
            for attempt in self._attempts.values():
                attempt.stop(
                    StopDirective(
                        StopCause.LEAVING, DISCONNECT_GRACE, "the coordinator has been out of reach for too long"
                    )
                )
            await self._context.contact.wait_for_reply()

    # Attempts

    def _busy(self, slots: Iterable[int]) -> bool:
        """Return whether a held lease, an ending one too, has one of these slots (S9)."""
        taken = {slot for attempt in self._attempts.values() for slot in attempt.assignment.slots}
        return not taken.isdisjoint(slots)

    def _start_attempt(self, work: Assignment) -> None:
        with work.bind_logs():
            log.info("lease granted")
        self._add_attempt(Attempt(work, self._context, changed=self.changed.set))

    def _add_attempt(self, attempt: Attempt) -> None:
        lease = attempt.assignment.lease
        self._started.add(lease)
        self._attempts[lease] = attempt
        self._idle.clear()
        self._spawn(self._run(lease, attempt))
        self.changed.set()

    async def _run(self, lease: str, attempt: Attempt) -> None:
        await attempt.run()
        del self._attempts[lease]
        self.changed.set()
        self._update_idle()

    def _update_idle(self) -> None:
        if not self._attempts and not self._declining:
            self._idle.set()

    def _decline(self, lease: str, cause: StopCause) -> None:
        """Release a lease that must stop before it started here, or that came while this agent was leaving."""
        self._started.add(lease)
        self._declining.add(lease)
        self._idle.clear()
        self._spawn(self._release_lease(lease, cause))

    async def _release_lease(self, lease: str, cause: StopCause) -> None:
        with bind(**name_fields(lease)):
            try:
                await complete_lease(
                    self._context, Assignment(lease, pb.Assignment()), (), make_stopped(cause), asyncio.Lock()
                )
            except LeaseLost:
                log.info("lease over before it began")
        self._declining.discard(lease)
        self._update_idle()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None
        if self._over:  # a reply was being applied; nobody would cancel what it starts
            work.close()
            return
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _rejoin(self) -> tuple[list[Attempt], list[Shim]]:
        """Return attempts for the shims that an earlier agent left, and the shims of which no attempt can be made.

        A shim that is frozen or was killed since becomes an attempt, too: its lease is held until none of its
        processes lives, so that nobody else is granted it before, and ends with what its trainer had written.
        """
        found, others = [], []
        for shim in await self._context.shims.discover():
            try:
                if shim.record.rebooted:  # or was cloned: the lease may be held, and its trainer alive, on another host
                    raise ShimGone("the host has booted since")
                assignment = await asyncio.to_thread(
                    Assignment.load, AttemptFolder(Path(shim.record.folder)).assignment
                )
            except (ShimError, OSError, ValueError) as error:
                with bind(**name_fields(shim.record.lease)):
                    log.warning("shim of no use", reason=error)
                others.append(shim)
            else:
                with assignment.bind_logs():
                    log.info("trainer rejoined", pid=shim.record.pid)
                found.append(Attempt(assignment, self._context, changed=self.changed.set, shim=shim))
        return found, others

    async def _reap_shim(self, shim: Shim) -> None:
        """Kill and reap all processes of a shim that nobody can work with, dead or frozen."""
        with bind(**name_fields(shim.record.lease)):
            with contextlib.suppress(ShimError):
                await shim.kill("its agent cannot work with it")
            await shim.wait()
            await shim.forget()
        await self._retire(shim.record.lease.rpartition("/")[2])

    async def _retire_others(self, with_shim: set[str]) -> None:
        """Clean up attempts of an earlier agent that have no shim, because the host went down."""
        left = await asyncio.to_thread(self._context.open_attempts.all)
        for lease_id in left.keys() - {lease.rpartition("/")[2] for lease in with_shim}:
            await self._retire(lease_id)

    async def _retire(self, lease_id: str) -> None:
        """Clean up an attempt that nobody can continue."""
        with bind(lease=lease_id):
            log.info("attempt abandoned")
            try:
                await asyncio.to_thread(self._context.open_attempts.retire, lease_id)
            except OSError as error:  # the next agent tries again
                log.error("attempt not cleaned up", reason=error)

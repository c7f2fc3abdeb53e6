"""The agent as a whole: services, and one task for each lease that this host holds.

    session ──beats──► plan(held, wished) ──► start · stop · drop ──► attempts ──► shims ──► trainers

A service never returns; when one crashes the agent does, loudly, and its trainers train on under their shims until it
is started again. Cancelling an attempt's task is to let go of it. Three ways out: `leave` (save, publish, release,
exit), `detach` (only the agent ends), and a session that says this agent has no business here any more.
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

CUT_OFF = 30.0  #: seconds of silence, beyond the budget, after which leaving gives up on the coordinator
DISCONNECT_GRACE = 60.0  #: seconds to save in when the coordinator has been away for too long

Service = Callable[[], Coroutine[Any, Any, None]]  #: never returns


class ExitRequest(enum.Enum):
    """How an agent ends."""

    LEAVE = enum.auto()  #: save, publish, release, exit
    DETACH = enum.auto()  #: only the agent ends


class Supervisor:
    """Holds the leases of this host; what its session speaks for."""

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
        self._begun: set[str] = set()
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

    # What the session asks and tells

    @property
    def busy(self) -> bool:
        """Whether it holds any lease."""
        return bool(self._attempts)

    def hello(self) -> pb.Hello:
        """Who is calling; the session adds the ids."""
        hello = pb.Hello()
        hello.CopyFrom(self._hello)
        hello.held.extend(self._held())
        hello.readiness.CopyFrom(self._readiness())
        return hello

    def heartbeat(self) -> pb.Heartbeat:
        """All that is held, every time."""
        return pb.Heartbeat(held=self._held(), readings=self._readings(), readiness=self._readiness())

    def _held(self) -> list[pb.HeldLease]:
        return [attempt.describe() for attempt in self._attempts.values()]

    def _readiness(self) -> pb.Readiness:
        reason = "leaving" if self._leaving else ""
        return pb.Readiness(ready=not self._leaving, leaving=self._leaving, reason=reason)

    def welcomed(self, welcome: pb.Welcome, timing: LeaseTiming) -> None:
        """A session begins: what the coordinator lacks of its leases is sent again."""
        self._timing = timing
        self._context.spool.window.heartbeat = timing.heartbeat
        self._context.remover.start_session(welcome.session_id, timing.heartbeat)
        for record in welcome.leases:
            if attempt := self._attempts.get(record.lease):
                attempt.sync(record)

    def wished(self, beat: HeartbeatReply, standing: SessionState) -> SessionState:
        """What is held becomes what is wished."""
        standing, self._terms = standing.hearing(beat, self._terms)
        todo = plan(self._attempts, beat.wishes, frozenset(self._begun))
        for lease in sorted(todo.drop):
            self._attempts[lease].drop()
        for lease in sorted(todo.stop):
            wish = beat.wishes[lease]
            self._attempts[lease].stop(StopDirective(StopCause.REQUESTED, wish.grace, wish.reason.name.lower()))
        for lease in sorted(todo.start):
            work = beat.wishes[lease].work
            assert isinstance(work, Assignment)
            if self._leaving:  # granted before the coordinator had heard of it
                self._decline(lease, StopCause.LEAVING)
            elif not self._busy(work.slots):  # a later beat names it again
                self._begin(work)
        for lease in sorted(todo.decline):
            self._decline(lease, StopCause.REQUESTED)
        self._pass_on_trust()
        return standing

    def _pass_on_trust(self) -> None:
        assert self._timing is not None
        for lease, term in self._terms.items():
            if lease in self._attempts:
                self._attempts[lease].extend_trust(term.stop_at(self._timing))

    # From beginning to end

    async def run(self, services: Iterable[Service], orders: asyncio.Queue[ExitRequest], budget: float) -> None:
        """Until `orders` says how to end. `budget` is the seconds that leaving may take."""
        rejoined, useless = await self._rejoin()
        await self._retire_others(
            {attempt.assignment.lease for attempt in rejoined} | {shim.record.lease for shim in useless}
        )
        async with asyncio.TaskGroup() as self._group:
            for attempt in rejoined:
                self._take(attempt)
            for shim in useless:
                self._spawn(self._bury(shim))
            for service in (*services, self._mind_silence):
                self._spawn(service())
            if await orders.get() is ExitRequest.LEAVE:
                await self._leave(orders, budget)
            self._over = True
            for task in self._tasks:
                task.cancel()

    async def _leave(self, orders: asyncio.Queue[ExitRequest], budget: float) -> None:
        """Save within the budget, publish, release. Said again it hurries; a detach leaves that to the next agent."""
        log.info("agent leaving", leases=len(self._attempts), budget=budget)
        self._leaving = True
        self.changed.set()
        for attempt in self._attempts.values():
            attempt.leave(budget)
        ways = {asyncio.create_task(self._until_idle(budget + CUT_OFF)), asyncio.create_task(self._hurry(orders))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()

    async def _until_idle(self, patience: float) -> None:
        """Until nothing is held; or the coordinator, without which nothing can be finished, was silent for too long."""
        while not self._idle.is_set() and (rest := patience - self._context.contact.silence) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._idle.wait()
        if self._attempts:
            log.error("leases left unfinished", leases=",".join(self._attempts))

    async def _hurry(self, orders: asyncio.Queue[ExitRequest]) -> None:
        """Until told to detach."""
        while await orders.get() is ExitRequest.LEAVE:
            for attempt in self._attempts.values():
                attempt.hurry()

    async def _mind_silence(self) -> None:
        """A host that nobody can reach must not train on for ever: somebody pays for it."""
        while True:
            rest = self._disconnect_limit - self._context.contact.silence
            if rest > 0:
                await asyncio.sleep(rest)
                continue
            for attempt in self._attempts.values():
                attempt.stop(
                    StopDirective(
                        StopCause.LEAVING, DISCONNECT_GRACE, "the coordinator has been out of reach for too long"
                    )
                )
            await self._context.contact.sign()

    # Attempts

    def _busy(self, slots: Iterable[int]) -> bool:
        """Whether a lease here, an ending one too, still has one of these slots (S9)."""
        taken = {slot for attempt in self._attempts.values() for slot in attempt.assignment.slots}
        return not taken.isdisjoint(slots)

    def _begin(self, work: Assignment) -> None:
        with work.bind_logs():
            log.info("lease granted")
        self._take(Attempt(work, self._context, changed=self.changed.set))

    def _take(self, attempt: Attempt) -> None:
        lease = attempt.assignment.lease
        self._begun.add(lease)
        self._attempts[lease] = attempt
        self._idle.clear()
        self._spawn(self._run(lease, attempt))
        self.changed.set()

    async def _run(self, lease: str, attempt: Attempt) -> None:
        await attempt.run()
        del self._attempts[lease]
        self.changed.set()
        self._rest()

    def _rest(self) -> None:
        if not self._attempts and not self._declining:
            self._idle.set()

    def _decline(self, lease: str, cause: StopCause) -> None:
        """Give it back: it was to be stopped before it began here, or came when this agent was leaving."""
        self._begun.add(lease)
        self._declining.add(lease)
        self._idle.clear()
        self._spawn(self._give_back(lease, cause))

    async def _give_back(self, lease: str, cause: StopCause) -> None:
        with bind(**name_fields(lease)):
            try:
                await complete_lease(
                    self._context, Assignment(lease, pb.Assignment()), (), make_stopped(cause), asyncio.Lock()
                )
            except LeaseLost:
                log.info("lease over before it began")
        self._declining.discard(lease)
        self._rest()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None
        if self._over:  # a beat was just being heard; nobody would cancel what it begins
            work.close()
            return
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _rejoin(self) -> tuple[list[Attempt], list[Shim]]:
        """Attempts of the shims that an agent before this one left, and the shims that no attempt can be made of.

        One that is frozen or was killed since is an attempt too: its lease is held until nothing of it lives, so that
        nobody else is granted it before, and then ends with what its trainer had written.
        """
        found, others = [], []
        for shim in await self._context.shims.discover():
            try:
                if shim.record.rebooted:  # or cloned: the lease may be held, and its trainer alive, on another host
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

    async def _bury(self, shim: Shim) -> None:
        """A shim that nobody can work with, dead or frozen: nothing of it may live on."""
        with bind(**name_fields(shim.record.lease)):
            with contextlib.suppress(ShimError):
                await shim.kill("its agent cannot work with it")
            await shim.wait()
            await shim.forget()
        await self._retire(shim.record.lease.rpartition("/")[2])

    async def _retire_others(self, with_shim: set[str]) -> None:
        """What an agent before this one had begun, and that has no shim: the host went down under it."""
        left = await asyncio.to_thread(self._context.open_attempts.all)
        for lease_id in left.keys() - {lease.rpartition("/")[2] for lease in with_shim}:
            await self._retire(lease_id)

    async def _retire(self, lease_id: str) -> None:
        """Nobody can go on with it."""
        with bind(lease=lease_id):
            log.info("attempt abandoned")
            try:
                await asyncio.to_thread(self._context.open_attempts.retire, lease_id)
            except OSError as error:  # the next agent tries again
                log.error("attempt not cleaned up", reason=error)

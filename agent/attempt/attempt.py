"""One lease's life on this host, as stages:

    fetch inputs → choose and verify a checkpoint → first write → start → watch → publish → result → complete → forget

An agent that comes after another joins in the middle: it finds the shim, reads the assignment from the attempt's
folder, the checkpoints from the disk, and goes on watching; the trainer never notices. Cancelling `run` is to let go in
that sense. Only an order (a wish, a leave, a stall) stops a trainer, and only LEASE_LOST kills it for good.

How the trainer ends is a value. What this host or the network does wrong is a fault, reported as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Never

from agent.attempt.completion import complete, failed, faulted, publish_records, publish_result, stopped
from agent.attempt.directives import Orders
from agent.attempt.exit_classification import Cause, Order, Stop, Success, verdict
from agent.attempt.hub_setup import open_hub_outputs
from agent.attempt.progress import Progress
from agent.attempt.setup import choose_checkpoint, fetch, publishing, start
from agent.attempt.start_attempt import FirstWrite
from agent.attempt.watch import Watch, scanner_of
from agent.checkpoints.publisher import Publisher
from agent.checkpoints.resume import mend
from agent.context import AttemptContext
from agent.errors import HostFault
from agent.events.journal import Journal
from agent.events.reports import Saved
from agent.events.sources import Source
from agent.folder import AttemptFolder
from agent.hub.outputs import LEAVING, RESULT, STOPPING, HubOutputs, result_of
from agent.shim_client.jobs import Exit
from agent.shim_client.shims import Shim, ShimError
from agent.stores.publishing import Publishing
from agent.stores.retry import Patience
from agent.wire import Assignment
from relay.errors import LeaseLost
from relay.v1 import agents_pb2 as pb
from runfile import RunFile

log = logging.getLogger(__name__)

LOOK = 0.5  #: seconds between two looks at a trainer's files; orders wait for none


class Attempt:
    """One lease, from its first directive to its end. All but `run` returns at once."""

    def __init__(
        self, assignment: Assignment, context: AttemptContext, *, changed: Callable[[], None], shim: Shim | None = None
    ) -> None:
        self.assignment = assignment
        self._context = context
        self._changed = changed
        self._shim = shim
        self._rejoined = shim is not None
        self._folder = (
            AttemptFolder(Path(shim.record.folder))  # the agent that began it may have had another root
            if shim is not None
            else context.attempt_folder(assignment.lease, assignment.attempt)
        )
        self._journal = Journal(self._folder.agent_log, context.wall)
        self._phase: pb.HeldLease.Phase.ValueType = pb.HeldLease.RUNNING if self._rejoined else pb.HeldLease.PREPARING
        self._orders = Orders(assignment.lease, context.now)
        self._gone = asyncio.Event()
        self._reporting = asyncio.Lock()
        self.sources = _sources(assignment, self._folder, self._gone, ready=shim is None)
        self._first_write = FirstWrite(self._folder.first_write, context.stub, context.metadata, context.contact)
        if self._rejoined:
            self._first_write.rejoin()
        self._watch: Watch | None = None
        self._publisher: Publisher | None = None
        self._patience = Patience(self._journal, context.now)
        self._hub = HubOutputs()
        self._stalled = ""
        self._ended = "lost"

    # What it is told

    def stop(self, order: Order) -> None:
        """Save and end. Said again, it can only come sooner."""
        self._orders.sharpen(order)
        self._move(pb.HeldLease.ENDING)

    def leave(self, budget: float) -> None:
        """Save within `budget` seconds; where the step that runs now takes longer than that, do not wait for it."""
        until = self._watch.progress.until_step(self._context.now()) if self._watch else None
        if until is not None and until > budget:
            self.stop(Order(Stop.LEAVING, 0.0, f"leaving, and this step ends in {until:.0f} s only"))
        else:
            self.stop(Order(Stop.LEAVING, budget, "leaving"))

    def hurry(self) -> None:
        """Leave at once: no more saving, and no waiting for copies that are on their way."""
        self.stop(Order(Stop.LEAVING, 0.0, "told to hurry"))
        self._orders.hurried.set()

    def drop(self) -> None:
        """The lease is not ours any more."""
        self._gone.set()

    def trust(self, until: float) -> None:
        """The lease may be trusted until this moment of CLOCK_BOOTTIME."""
        self._orders.extend(until)

    def sync(self, record: pb.LeaseRecord) -> None:
        """What the coordinator has of it, as it says when a session begins: what is missing is sent again."""
        stored = {(cursor.node, cursor.source): cursor.offset for cursor in record.cursors}
        for source in self.sources.values():
            source.sync(stored.get((source.node, source.name), 0))
        self._first_write.sync(record.started)
        if self._publisher is not None:
            self._publisher.sync(record.checkpoints)

    def held(self) -> pb.HeldLease:
        """What heartbeats say of it."""
        return pb.HeldLease(
            lease=self.assignment.lease,
            node=self.assignment.node,
            phase=self._phase,
            slots=self.assignment.slots,
        )

    # Its life

    async def run(self) -> None:
        """To the end of the lease, or until cancelled."""
        try:
            if not await self._report_end():
                await self._kill("lease lost")
        finally:
            self._context.spool.remove(self.assignment.lease)
        try:
            if self._shim is not None:
                await self._shim.forget()
            await asyncio.to_thread(self._tidy)
        except (ShimError, OSError) as error:  # the next agent of this host finds what is left
            log.error("lease=%s untidy reason=%r", self.assignment.lease, str(error))
        log.info("lease=%s over=%s", self.assignment.lease, self._ended)

    async def _report_end(self) -> bool:
        """Live until the lease's end is reported; False when the lease was lost before."""
        reported = True
        try:
            async with asyncio.TaskGroup() as group:
                helpers: list[asyncio.Task[object]] = [group.create_task(self._until_gone())]
                outcome = await self._live(lambda work: helpers.append(group.create_task(work)))
                sources, first = (self.sources.values(), self._stored) if self._shim else ((), None)
                await complete(self._context, self.assignment, sources, outcome, self._reporting, first)
                self._ended = outcome.WhichOneof("outcome") or ""
                for task in helpers:
                    task.cancel()
        except* LeaseLost:  # awaits nothing: before Python 3.11.4 a cancellation would leave it wrapped in a group
            reported = False
        return reported

    def _tidy(self) -> None:
        """The disk goes back, and what people see is brought up to date. Blocking."""
        self._context.begun.retire(self.assignment.lease_id)
        if self._shim is not None:
            run = self._context.run_folder(self.assignment.run_id)
            run.clean()
            run.show(self._folder, self._ended)

    async def _until_gone(self) -> Never:
        await self._gone.wait()
        async with self._reporting:  # a wish without the lease may overtake the answer to the report of its end
            raise LeaseLost()

    async def _live(self, beside: Callable[[Coroutine[Any, Any, object]], None]) -> pb.CompleteLeaseRequest:
        """Every stage but the last. `beside` runs something until the lease's end."""
        try:
            run = self._run_file()
            if self._shim is None:
                await unless(self._orders.stopped, self._begin(run, beside))
            if self._shim is None:
                return stopped(self._orders.stop.cause if self._orders.stop else Stop.REQUESTED)
            self._context.spool.add(self.sources.values())
            stored = publishing(self._context, self.assignment, run, self._patience)
            self._hub = hub = open_hub_outputs(self._context, self.assignment, run, self._folder, self._journal)
            self._publisher = publisher = await asyncio.to_thread(
                _publisher, self.assignment, run, self._folder, self._context, self.sources, self._journal, stored, hub
            )
            beside(self._orders.pass_on(self._shim))
            beside(self._first_write.keep())
            beside(publisher.run())
            beside(self._hub.run())
            ended = await self._follow(run, publisher)
            return await self._judge(run, ended, publisher, stored)
        except HostFault as fault:
            log.error("lease=%s fault=%s reason=%r", self.assignment.lease, fault.reason, str(fault))
            await self._kill(str(fault))
            return faulted(fault.reason, str(fault))

    def _run_file(self) -> RunFile:
        try:
            return self.assignment.run_file()
        except ValueError as error:
            raise HostFault("AGENT_TOO_OLD", f"this agent cannot read the run file: {error}") from error

    async def _begin(self, run: RunFile, beside: Callable[[Coroutine[Any, Any, object]], None]) -> None:
        await fetch(self._context, self.assignment, self._folder)
        chosen = await choose_checkpoint(
            self._context, self.assignment, self._folder, self._first_write, self._patience
        )
        beside(mend(chosen, self._context.stores, self._journal))
        if self.assignment.stops_on_disconnect:
            await self._orders.trusted()  # nothing is started on an old promise
        self._shim = await start(self._context, self.assignment, run, self._folder, chosen, self._orders.trust)

    async def _follow(self, run: RunFile, publisher: Publisher) -> Exit:
        """Until the trainer and all it started are gone."""
        assert self._shim is not None
        self._watch = watch = await asyncio.to_thread(
            _watching, run, self._folder, self._context.now, rejoined=self._rejoined
        )
        self._move(pb.HeldLease.ENDING if self._orders.stop else pb.HeldLease.RUNNING)
        waiting = asyncio.create_task(self._shim.wait())
        try:
            while not waiting.done():
                await self._look(watch, publisher)
                if self._orders.stop is None and not self._stalled:
                    await self._look_for_stall(self._shim, watch.progress.stalled(self._context.now()))
                await asyncio.wait({waiting}, timeout=LOOK)
        finally:
            waiting.cancel()
        self._move(pb.HeldLease.ENDING)
        await self._look(watch, publisher, final=True)
        return waiting.result()

    async def _look(self, watch: Watch, publisher: Publisher, *, final: bool = False) -> None:
        """Offer the checkpoints that were finished meanwhile, each with a line that names it."""
        for saved in await watch.look(final=final):
            try:
                publisher.offer(saved if saved.end else await self._named(saved))
            except OSError as error:  # the disk is full; the next checkpoint may find room
                log.error("lease=%s step=%d unnamed reason=%r", self.assignment.lease, saved.step, str(error))

    async def _named(self, saved: Saved) -> Saved:
        """A checkpoint whose program wrote no line, with one of the agent's own."""
        end = await self._journal.write(
            "checkpoint", step=saved.step, path=Path(saved.path).name, metrics=saved.metrics
        )
        return replace(saved, source="agent", end=end)

    async def _look_for_stall(self, shim: Shim, stalled: str) -> None:
        if stalled:
            await self._journal.say("error", f"stalled: {stalled}; its state is in dump.json")
            with contextlib.suppress(ShimError):  # told again at the next look
                await shim.dump()
                await shim.kill(f"stalled: {stalled}")
                self._stalled = stalled

    async def _judge(
        self, run: RunFile, ended: Exit, publisher: Publisher, stored: Publishing
    ) -> pb.CompleteLeaseRequest:
        """What it comes to, once its checkpoints are safe and its result is stored."""
        assert self._watch is not None
        log.info("lease=%s trainer=ended code=%s signal=%s", self.assignment.lease, ended.code, ended.signal)
        await unless(self._orders.hurried, publisher.settled())
        records = publish_records(stored, self.assignment, run, self._folder, self._journal)
        await unless(self._orders.hurried, records)
        judged = verdict(
            ended,
            order=self._orders.stop,
            command=run.command is not None,
            stderr=await self._watch.stderr(),
            oom_kills=self._watch.oom_kills,
            disk_full=await self._watch.disk_full(),
            stalled=self._stalled,
        )
        outcome = await self._outcome(run, judged, stored)
        await unless(self._orders.hurried, self._publish_last(judged))
        return outcome

    async def _outcome(
        self, run: RunFile, judged: Success | Stop | Cause, stored: Publishing
    ) -> pb.CompleteLeaseRequest:
        match judged:
            case Success():
                return await publish_result(stored, self.assignment, run, self._folder, self._journal)
            case Stop():
                return stopped(judged)
            case Cause():
                return failed(judged)

    async def _publish_last(self, judged: Success | Stop | Cause) -> None:
        """What people find on the Hub is the run's newest."""
        assert self._watch is not None
        result = await asyncio.to_thread(result_of, self._folder, self._watch.progress.step)
        match judged:
            case Success():
                await self._hub.finish(result, RESULT)
            case Stop.LEAVING:
                await self._hub.finish(None, LEAVING)
            case Stop.REQUESTED | Cause():
                await self._hub.finish(None, STOPPING)

    async def _stored(self) -> int | None:
        """Until its first write and its checkpoints are with the coordinator, again if a failover lost them."""
        await self._first_write.stored()
        if self._publisher is None:
            return None
        await unless(self._orders.hurried, self._publisher.settled())
        return self._publisher.registered_step

    async def _kill(self, why: str) -> None:
        """End the trainer, keep its bytes."""
        if self._shim is not None:
            with contextlib.suppress(ShimError):  # `wait` knows what to do then
                await self._shim.kill(why)
            await self._shim.wait()

    def _move(self, phase: pb.HeldLease.Phase.ValueType) -> None:
        if phase != self._phase:
            self._phase = phase
            self._changed()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`; give it up when `event` comes first."""
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


def _watching(run: RunFile, folder: AttemptFolder, now: Callable[[], float], *, rejoined: bool) -> Watch:
    progress = Progress(run.lifecycle.stall_after, now(), contract=run.command is None)
    return Watch(folder, progress, scanner_of(run, folder, now), now, rejoined=rejoined)


def _publisher(
    assignment: Assignment,
    run: RunFile,
    folder: AttemptFolder,
    context: AttemptContext,
    sources: Mapping[str, Source],
    journal: Journal,
    stored: Publishing,
    hub: HubOutputs,
) -> Publisher:
    runs = context.run_folder(assignment.run_id)

    async def retain(needed: set[int]) -> None:
        await asyncio.to_thread(runs.retain, folder, needed | hub.needed)

    return Publisher(
        assignment,
        folder,
        agent=context.agent,
        stub=context.stub,
        metadata=context.metadata,
        contact=context.contact,
        publishing=stored,
        place=partial(assignment.place, run),
        sources=sources,
        journal=journal,
        retain=retain,
        registered=hub.registered,
        done=max(folder.steps(), default=0) - 1,
    )


def _sources(assignment: Assignment, folder: AttemptFolder, lost: asyncio.Event, *, ready: bool) -> dict[str, Source]:
    files = {"events": folder.events, "agent": folder.agent_log, "stdout": folder.stdout, "stderr": folder.stderr}
    return {
        name: Source(assignment.lease, assignment.node, name, path, name in ("events", "agent"), lost, ready)
        for name, path in files.items()
    }

"""One lease's life on this host, as stages:

    fetch inputs → choose and verify a checkpoint → first write → start → watch → publish → result → complete → forget

A restarted agent joins in the middle: it finds the shim, reads the assignment from the attempt's folder and the
checkpoints from the disk, and continues to watch; the trainer never notices. Cancelling `run` detaches from the trainer
in the same way. Only a directive (the desired state, a host that leaves, a stall) stops a trainer, and only LEASE_LOST
kills it at once.

How the trainer ends is a value. What this host or the network does wrong is a `HostFault`, reported as such.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Never

from agent.attempt.completion import (
    complete_lease,
    make_failed,
    make_faulted,
    make_stopped,
    publish_logs,
    publish_result,
)
from agent.attempt.directives import Directives
from agent.attempt.exit_classification import FailureCause, StopCause, StopDirective, Success, classify_exit
from agent.attempt.hub_setup import open_hub_outputs
from agent.attempt.progress import TrainerProgress
from agent.attempt.setup import choose_and_report, fetch_inputs, open_store, start_trainer
from agent.attempt.start_attempt import StartReport
from agent.attempt.watch import TrainerWatch, make_scanner
from agent.checkpoints.publisher import CheckpointPublisher
from agent.checkpoints.resume import repair_copies
from agent.context import AttemptContext
from agent.errors import HostFault
from agent.events.journal import Journal
from agent.events.reports import SavedCheckpoint
from agent.events.sources import EventSource
from agent.folder import AttemptFolder
from agent.hub.outputs import LEAVING, RESULT, STOPPING, HubOutputs, find_result
from agent.shim_client.jobs import Exit
from agent.shim_client.shims import Shim, ShimError
from agent.stores.publishing import AttemptStore
from agent.stores.retry import StoreRetry
from agent.wire import Assignment
from relay.errors import LeaseLost
from relay.logs import get_logger
from relay.v1 import agents_pb2 as pb
from runfile import RunFile

log = get_logger(__name__)

POLL = 0.5  #: seconds between two looks at a trainer's files; directives do not wait for it


class Attempt:
    """The life of one lease on this host, from its first directive to its end. All methods but `run` return at once."""

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
        self._directives = Directives(context.now)
        self._lost = asyncio.Event()
        self._reporting = asyncio.Lock()
        self.sources = _make_sources(assignment, self._folder, self._lost, ready=shim is None)
        self._start_report = StartReport(self._folder.start_request, context.stub, context.metadata, context.contact)
        if self._rejoined:
            self._start_report.mark_stored()
        self._watch: TrainerWatch | None = None
        self._publisher: CheckpointPublisher | None = None
        self._retry = StoreRetry(self._journal, context.now)
        self._hub = HubOutputs()
        self._stalled = ""
        self._ended = "lost"

    # Directives

    def stop(self, order: StopDirective) -> None:
        """Ask the trainer to save and end; a repeated stop can only shorten the time it has."""
        with self.assignment.bind_logs():  # another task asks
            self._directives.strengthen(order)
        self._enter_phase(pb.HeldLease.ENDING)

    def leave(self, budget: float) -> None:
        """Save within `budget` seconds; where the step that runs now takes longer than that, do not wait for it."""
        until = self._watch.progress.seconds_to_step_end(self._context.now()) if self._watch else None
        if until is not None and until > budget:
            self.stop(StopDirective(StopCause.LEAVING, 0.0, f"leaving, and this step ends in {until:.0f} s only"))
        else:
            self.stop(StopDirective(StopCause.LEAVING, budget, "leaving"))

    def hurry(self) -> None:
        """Leave at once: no more saving, and no waiting for copies that are on their way."""
        self.stop(StopDirective(StopCause.LEAVING, 0.0, "told to hurry"))
        self._directives.hurried.set()

    def drop(self) -> None:
        """Give the lease up: the coordinator no longer desires it here."""
        self._lost.set()

    def extend_trust(self, until: float) -> None:
        """Extend trust in the lease until this moment of CLOCK_BOOTTIME."""
        self._directives.extend_trust(until)

    def sync(self, record: pb.LeaseRecord) -> None:
        """Take over what the coordinator has of the lease, as a new session says; what is missing is sent again."""
        store = {(cursor.node, cursor.source): cursor.offset for cursor in record.cursors}
        for source in self.sources.values():
            source.sync(store.get((source.node, source.name), 0))
        self._start_report.sync(record.started)
        if self._publisher is not None:
            with self.assignment.bind_logs():
                self._publisher.sync(record.checkpoints)

    def describe(self) -> pb.HeldLease:
        """Return what heartbeats say of the lease."""
        work = self.assignment
        return pb.HeldLease(lease=work.lease, node=work.node, phase=self._phase, slots=work.slots)

    # Stages

    async def run(self) -> None:
        """Run every stage to the end of the lease, or until cancelled."""
        with self.assignment.bind_logs():
            try:
                if not await self._live_and_report():
                    await self._kill("lease lost")
            finally:
                self._context.spool.remove(self.assignment.lease)
            try:
                if self._shim is not None:
                    await self._shim.forget()
                await asyncio.to_thread(self._clean_up)
            except (ShimError, OSError) as error:  # the next agent of this host finds what is left
                log.error("attempt not cleaned up", reason=error)
            log.info("attempt over", outcome=self._ended)

    async def _live_and_report(self) -> bool:
        """Run until the end of the lease is reported; return False when the lease was lost before."""
        reported = True
        try:
            async with asyncio.TaskGroup() as group:
                helpers: list[asyncio.Task[object]] = [group.create_task(self._raise_when_lost())]
                outcome = await self._run_stages(lambda work: helpers.append(group.create_task(work)))
                sources, first = (self.sources.values(), self._wait_stored) if self._shim else ((), None)
                await complete_lease(self._context, self.assignment, sources, outcome, self._reporting, first)
                self._ended = outcome.WhichOneof("outcome") or ""
                for task in helpers:
                    task.cancel()
        except* LeaseLost:  # awaits nothing: before Python 3.11.4 a cancellation would leave it wrapped in a group
            reported = False
        return reported

    def _clean_up(self) -> None:
        """Free the disk, and update the links and files that users read. Blocking."""
        self._context.open_attempts.retire(self.assignment.lease_id)
        if self._shim is not None:
            run = self._context.run_folder(self.assignment.run_id)
            run.clean()
            run.show(self._folder, self._ended)

    async def _raise_when_lost(self) -> Never:
        await self._lost.wait()
        async with self._reporting:  # a wish without the lease may overtake the answer to the report of its end
            raise LeaseLost()

    async def _run_stages(self, spawn: Callable[[Coroutine[Any, Any, object]], None]) -> pb.CompleteLeaseRequest:
        """Run every stage but the last and return the outcome. `spawn` runs work until the end of the lease."""
        try:
            run = _parse_run_file(self.assignment)
            if self._shim is None:
                await run_unless(self._directives.stopped, self._prepare_and_start(run, spawn))
            if self._shim is None:
                return make_stopped(self._directives.stop.cause if self._directives.stop else StopCause.REQUESTED)
            self._context.spool.add(self.sources.values())
            store = open_store(self._context, self.assignment, run, self._retry)
            self._hub = hub = open_hub_outputs(self._context, self.assignment, run, self._folder, self._journal)
            self._publisher = publisher = await asyncio.to_thread(
                _make_publisher,
                self.assignment,
                run,
                self._folder,
                self._context,
                self.sources,
                self._journal,
                store,
                hub,
            )
            spawn(self._directives.forward(self._shim))
            spawn(self._start_report.resend_when_lost())
            spawn(publisher.run())
            spawn(self._hub.run())
            ended = await self._watch_trainer(run, publisher)
            return await self._conclude(run, ended, publisher, store)
        except HostFault as fault:
            log.error("host fault", fault=fault.reason, reason=fault)
            await self._kill(str(fault))
            return make_faulted(fault.reason, str(fault))

    async def _prepare_and_start(self, run: RunFile, spawn: Callable[[Coroutine[Any, Any, object]], None]) -> None:
        await fetch_inputs(self._context, self.assignment, self._folder)
        chosen = await choose_and_report(self._context, self.assignment, self._folder, self._start_report, self._retry)
        spawn(repair_copies(chosen, self._context.stores, self._journal))
        if self.assignment.stops_on_disconnect:
            await self._directives.wait_trusted()  # nothing is started on an old promise
        self._shim = await start_trainer(
            self._context, self.assignment, run, self._folder, chosen, self._directives.trust
        )

    async def _watch_trainer(self, run: RunFile, publisher: CheckpointPublisher) -> Exit:
        """Watch the trainer until it and everything that it started are gone; return how it ended."""
        assert self._shim is not None
        self._watch = watch = await asyncio.to_thread(
            _make_watch, run, self._folder, self._context.now, rejoined=self._rejoined
        )
        self._enter_phase(pb.HeldLease.ENDING if self._directives.stop else pb.HeldLease.RUNNING)
        waiting = asyncio.create_task(self._shim.wait())
        try:
            while not waiting.done():
                await self._offer_finished(watch, publisher)
                if self._directives.stop is None and not self._stalled:
                    await self._end_stalled(self._shim, watch.progress.describe_stall(self._context.now()))
                await asyncio.wait({waiting}, timeout=POLL)
        finally:
            waiting.cancel()
        self._enter_phase(pb.HeldLease.ENDING)
        await self._offer_finished(watch, publisher, final=True)
        return waiting.result()

    async def _offer_finished(
        self, watch: TrainerWatch, publisher: CheckpointPublisher, *, final: bool = False
    ) -> None:
        """Offer the checkpoints that were finished meanwhile, each with a line that names it."""
        for saved in await watch.poll(final=final):
            try:
                publisher.offer(saved if saved.end else await self._name_checkpoint(saved))
            except OSError as error:  # the disk is full; the next checkpoint may find room
                log.error("checkpoint not named", step=saved.step, reason=error)

    async def _name_checkpoint(self, saved: SavedCheckpoint) -> SavedCheckpoint:
        """Register a checkpoint, whose program wrote no event line, by a line of the agent's own."""
        end = await self._journal.append(
            "checkpoint", step=saved.step, path=Path(saved.path).name, metrics=saved.metrics
        )
        return replace(saved, source="agent", end=end)

    async def _end_stalled(self, shim: Shim, stalled: str) -> None:
        if stalled:
            await self._journal.record("error", f"stalled: {stalled}; its state is in dump.json")
            with contextlib.suppress(ShimError):  # told again at the next look
                await shim.dump()
                await shim.kill(f"stalled: {stalled}")
                self._stalled = stalled

    async def _conclude(
        self, run: RunFile, ended: Exit, publisher: CheckpointPublisher, store: AttemptStore
    ) -> pb.CompleteLeaseRequest:
        """Return the outcome, once the checkpoints are published and the result is stored."""
        assert self._watch is not None
        log.info("trainer ended", code=ended.code, signal=ended.signal)
        await run_unless(self._directives.hurried, publisher.drain())
        records = publish_logs(store, self.assignment, run, self._folder, self._journal)
        await run_unless(self._directives.hurried, records)
        classified = classify_exit(
            ended,
            directive=self._directives.stop,
            command=run.command is not None,
            stderr=await self._watch.read_stderr(),
            oom_kills=self._watch.oom_kills,
            disk_full=await self._watch.is_disk_full(),
            stalled=self._stalled,
        )
        outcome = await self._make_outcome(run, classified, store)
        await run_unless(self._directives.hurried, self._publish_last(classified))
        return outcome

    async def _make_outcome(
        self, run: RunFile, classified: Success | StopCause | FailureCause, store: AttemptStore
    ) -> pb.CompleteLeaseRequest:
        match classified:
            case Success():
                return await publish_result(store, self.assignment, run, self._folder, self._journal)
            case StopCause():
                return make_stopped(classified)
            case FailureCause():
                return make_failed(classified)

    async def _publish_last(self, classified: Success | StopCause | FailureCause) -> None:
        """Publish the run's newest checkpoint or result, so that this is what users find on the Hub."""
        assert self._watch is not None
        result = await asyncio.to_thread(find_result, self._folder, self._watch.progress.step)
        match classified:
            case Success():
                await self._hub.finish(result, RESULT)
            case StopCause.LEAVING:
                await self._hub.finish(None, LEAVING)
            case StopCause.REQUESTED | FailureCause():
                await self._hub.finish(None, STOPPING)

    async def _wait_stored(self) -> int | None:
        """Wait until the coordinator has the first write and the checkpoints; send again what a failover lost."""
        await self._start_report.wait_stored()
        if self._publisher is None:
            return None
        await run_unless(self._directives.hurried, self._publisher.drain())
        return self._publisher.registered_step

    async def _kill(self, why: str) -> None:
        """Kill the trainer and keep its files."""
        if self._shim is not None:
            with contextlib.suppress(ShimError):  # `wait` knows what to do then
                await self._shim.kill(why)
            await self._shim.wait()

    def _enter_phase(self, phase: pb.HeldLease.Phase.ValueType) -> None:
        if phase != self._phase:
            self._phase = phase
            self._changed()


async def run_unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; cancel it when `event` is set first."""
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


def _parse_run_file(assignment: Assignment) -> RunFile:
    try:
        return assignment.run_file()
    except ValueError as error:
        raise HostFault("AGENT_TOO_OLD", f"this agent cannot read the run file: {error}") from error


def _make_watch(run: RunFile, folder: AttemptFolder, now: Callable[[], float], *, rejoined: bool) -> TrainerWatch:
    progress = TrainerProgress(run.lifecycle.stall_after, now(), contract=run.command is None)
    return TrainerWatch(folder, progress, make_scanner(run, folder, now), now, rejoined=rejoined)


def _make_publisher(
    assignment: Assignment,
    run: RunFile,
    folder: AttemptFolder,
    context: AttemptContext,
    sources: Mapping[str, EventSource],
    journal: Journal,
    store: AttemptStore,
    hub: HubOutputs,
) -> CheckpointPublisher:
    runs = context.run_folder(assignment.run_id)

    async def retain(needed: set[int]) -> None:
        await asyncio.to_thread(runs.retain, folder, needed | hub.needed)

    return CheckpointPublisher(
        assignment,
        folder,
        agent=context.agent,
        stub=context.stub,
        metadata=context.metadata,
        contact=context.contact,
        publishing=store,
        place=partial(assignment.place, run),
        sources=sources,
        journal=journal,
        retain=retain,
        on_registered=hub.offer,
        sealed_up_to=max(folder.steps(), default=0) - 1,
    )


def _make_sources(
    assignment: Assignment, folder: AttemptFolder, lost: asyncio.Event, *, ready: bool
) -> dict[str, EventSource]:
    files = {"events": folder.events, "agent": folder.agent_log, "stdout": folder.stdout, "stderr": folder.stderr}
    return {
        name: EventSource(assignment.lease, assignment.node, name, path, name in ("events", "agent"), lost, ready)
        for name, path in files.items()
    }

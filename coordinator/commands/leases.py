"""What happens to leases: granted, started, renewed, lapsed, missing and completed. One transaction each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from coordinator import scheduling
from coordinator.commands import retention
from coordinator.database.connections import Database
from coordinator.lifecycle import (
    Cause,
    Ended,
    Granted,
    Lapsed,
    LeaseState,
    Outcome,
    Phase,
    Policy,
    Renewed,
    RunState,
    Started,
    StopReason,
)
from coordinator.store import agents, checkpoints, deployment, history, leases, planning, runs
from coordinator.values import CheckpointView, Completion, LeasePlace, Skipped
from relay.errors import AgentUnknown, CheckpointUnknown, InvalidRequest, LeaseLost
from relay.logs import bind, get_logger

_log = get_logger(__name__)


class PlanOutdated(Exception):
    """The state that the plan was based on has changed: the grant is not made, and a new plan will be."""


async def grant(db: Database, planned: scheduling.Grant, ttl: float) -> UUID | None:
    """Grant a run as planned, ending its lapsed lease; return None when the plan is outdated (S1, S9)."""
    with bind(run=planned.run):
        try:
            async with db.transaction() as conn:
                return await _grant(conn, planned, ttl)
        except (PlanOutdated, asyncpg.UniqueViolationError, AgentUnknown) as changed:
            _log.info("run not granted", reason=changed)
            return None


async def _grant(conn: asyncpg.Connection, planned: scheduling.Grant, ttl: float) -> UUID:
    run = await runs.lock(conn, planned.run)
    if run.status.phase not in (Phase.QUEUED, Phase.LAPSED) or not run.eligible:
        raise PlanOutdated(f"it is {run.status.phase}")
    policy = planning.parse_policy(run.spec)
    await _check_agents(conn, run, planned.placements, ttl)
    if policy is Policy.STOP and await deployment.are_stop_runs_withheld(conn):
        raise PlanOutdated("the database failed over, and older holders may still train")
    places = [LeasePlace(node, placement.agent, placement.slots) for node, placement in enumerate(planned.placements)]
    await runs.apply(conn, run, Granted())
    attempt = run.attempts + 1
    lease_id = await leases.begin(conn, run.id, attempt, policy, places, ttl)
    await runs.count_attempt(conn, run.id, attempt)
    await agents.publish_desired_change(conn, [place.agent for place in places])
    await history.record(
        conn,
        run.id,
        "granted",
        f"attempt {attempt} on {', '.join(place.agent for place in places)}",
        lease_id=lease_id,
        attempt=attempt,
        details={"agents": [place.agent for place in places]},
        state=RunState.RUNNING.value,
    )
    return lease_id


async def _check_agents(
    conn: asyncpg.Connection, run: runs.RunRow, placements: Sequence[scheduling.Placement], ttl: float
) -> None:
    """Raise PlanOutdated unless every agent has the planned session, accepts work and has its slots free, and the lease
    that lapsed is still expired.

    Locks the old lease's places, and then all agents, in order.
    """
    old: list[str] = []
    if run.lease:
        if await leases.find_expired_agent(conn, run.lease.id) is None:
            raise PlanOutdated("its holder came back")
        old = [place.agent for place in await leases.read_places(conn, run.lease.id)]
    rows = await agents.lock(conn, [placement.agent for placement in placements] + old)
    for placement in placements:
        row = rows[placement.agent]
        if row["session_id"] != placement.session:
            raise PlanOutdated(f"{placement.agent} has a new session")
        if unschedulable := planning.explain_unschedulable(
            {**row, "quiet": row["heartbeat_age"].total_seconds() > ttl}
        ):
            raise PlanOutdated(f"{placement.agent} {unschedulable}")
        if busy := {slot for held in row["held"] for slot in held["slots"]} & set(placement.slots):
            raise PlanOutdated(f"{placement.agent} still occupies slots {sorted(busy)}")


async def start(
    db: Database, lease_id: UUID, node: int, checkpoint_id: UUID | None, skipped: Sequence[Skipped]
) -> None:
    """Record an attempt's first write: the head becomes the checkpoint that it resumes from (S6). Node 0 decides for
    all.
    """
    async with db.transaction() as conn:
        run = await runs.lock_by_lease(conn, lease_id)
        if node == 0 and not run.current_lease.started:
            await _start(conn, run, checkpoint_id, skipped)
        elif node == 0 and run.current_lease.resumed_from != checkpoint_id:
            raise InvalidRequest("this attempt has already started, from another checkpoint")


async def _start(
    conn: asyncpg.Connection, run: runs.RunRow, checkpoint_id: UUID | None, skipped: Sequence[Skipped]
) -> None:
    lease = run.current_lease
    checkpoint = await _check_resumable(conn, run.id, checkpoint_id)
    superseded = await checkpoints.resume_at(conn, run.id, lease.id, checkpoint)
    passed = [{"checkpoint": str(s.checkpoint_id), "step": s.step, "reason": s.reason} for s in skipped]
    await leases.start(conn, lease.id, checkpoint_id, checkpoint.step if checkpoint else 0, passed)
    await runs.apply(conn, run, Started())
    text = f"attempt {lease.attempt} resumes at step {checkpoint.step}" if checkpoint else "training begins"
    text += "".join(f"; step {s.step} was skipped: {s.reason}" for s in skipped)
    await history.record(
        conn,
        run.id,
        "started",
        text,
        lease_id=lease.id,
        attempt=lease.attempt,
        level="warning" if skipped else "info",
        details={
            "checkpoint": str(checkpoint_id or ""),
            "step": checkpoint.step if checkpoint else 0,
            "skipped": passed,
            "superseded": superseded,
        },
        state=run.state.value,
    )
    await retention.apply_policy(conn, run.id, run.spec)


async def _check_resumable(conn: asyncpg.Connection, run_id: str, checkpoint_id: UUID | None) -> CheckpointView | None:
    if checkpoint_id is None:
        return None
    checkpoint = await checkpoints.get(conn, checkpoint_id)
    if checkpoint is None or checkpoint.run_id != run_id:
        raise CheckpointUnknown(f"run {run_id} has no checkpoint {checkpoint_id}")
    if not checkpoint.complete or checkpoint.superseded or checkpoint.remove_time is not None:
        raise InvalidRequest(f"the checkpoint of step {checkpoint.step} is {_explain_unresumable(checkpoint)}")
    return checkpoint


def _explain_unresumable(checkpoint: CheckpointView) -> str:
    if checkpoint.superseded:
        return "superseded"
    return "scheduled for deletion" if checkpoint.remove_time is not None else "not complete"


async def complete(db: Database, lease_id: UUID, report: Completion) -> RunState:
    """End a lease as its agent reports. The same report again has the same answer.

    Raises EventsMissing while a source is not stored to its end, and CheckpointMissing while its newest checkpoint is
    not registered.
    """
    async with db.transaction() as conn:
        if (state := await _find_reported(conn, lease_id, report)) is not None:
            return state
        run = await runs.lock_by_lease(conn, lease_id)
        fine = report.outcome in (Outcome.SUCCEEDED, Outcome.STOPPED)
        if report.node != 0 and fine:
            return run.state  # node 0 reports for a gang; the reports of others count when something went wrong
        if report.outcome is not Outcome.FAULTED:
            await leases.check_cursors(conn, lease_id, report.final_cursors)
            await checkpoints.check_registered(conn, lease_id, report.registered_step)
        if report.output is not None:
            await _publish(conn, run, report)
        event = Ended(report.outcome, report.cause, report.permanent, _describe_end(report, run.status.stop))
        stored = {"digest": report.digest}
        change = await runs.apply(conn, run, event, error=report.error, completion=stored)
        await retention.apply_policy(conn, run.id, run.spec)
        return change.status.state


async def _find_reported(conn: asyncpg.Connection, lease_id: UUID, report: Completion) -> RunState | None:
    """Return the run's state when this very report ended the lease, None when the lease has not ended; otherwise
    LeaseLost.
    """
    end = await leases.lock_end(conn, lease_id)
    if end is None:
        raise LeaseLost
    if not end.ended:
        return None
    if end.digest != report.digest:
        raise LeaseLost
    return end.run_state


async def _publish(conn: asyncpg.Connection, run: runs.RunRow, report: Completion) -> None:
    lease, output = run.current_lease, dict(report.output or {})
    await runs.publish(conn, run.id, output)
    await history.record(
        conn,
        run.id,
        "output",
        f"the result is published: {output['files']} file{'' if output['files'] == 1 else 's'}, {output['size']} bytes",
        lease_id=lease.id,
        attempt=lease.attempt,
        details=output,
        state=run.state.value,
    )


def _describe_end(report: Completion, stop: StopReason | None) -> str:
    if report.outcome is Outcome.STOPPED:
        stopped = {StopReason.PREEMPT: "preempted", StopReason.PAUSE: "paused", StopReason.CANCEL: "cancelled"}
        if report.cause is Cause.LEAVING:
            return "its agent is leaving"
        if report.cause is Cause.TRUST_LOST:
            return "no contact for longer than its policy allows"
        return stopped[stop] if stop else ""
    return str(report.error["message"]) if report.error else ""


async def lapse(db: Database, lease_id: UUID, at: datetime | None = None) -> bool:
    """Let a lease lapse if a place of it has expired by the database's clock, once all of it is locked.

    With `at`, it must have expired by that moment too. Returns whether it lapsed.
    """
    async with db.transaction() as conn:
        run = await _lock_unended(conn, lease_id)
        if run is None or run.current_lease.state is not LeaseState.HELD:
            return False
        agent = await leases.find_expired_agent(conn, lease_id, at)
        if agent is None:
            return False
        text = f"no heartbeat from {agent}; the run may be granted to another host"
        change = await runs.apply(conn, run, Lapsed(), reason=text)
        if change.closing is None:
            await _record(conn, run, "lapsed", text, level="warning")
        return True


async def renew_lapsed(db: Database, lease_id: UUID) -> None:
    """Undo the lapse of a lease whose expired places have all been renewed."""
    async with db.transaction() as conn:
        run = await _lock_unended(conn, lease_id)
        if (
            run is None
            or run.current_lease.state is not LeaseState.LAPSED
            or await leases.find_expired_agent(conn, lease_id)
        ):
            return
        await runs.apply(conn, run, Renewed())
        await _record(conn, run, "renewed", "its holder came back")


async def end_missing(db: Database, lease_id: UUID) -> None:
    """End a lease that its agent should hold and does not: what ran it there is gone."""
    async with db.transaction() as conn:
        run = await _lock_unended(conn, lease_id)
        if run is None or (agent := await leases.find_missing_agent(conn, lease_id)) is None:
            return
        await runs.apply(conn, run, Ended(Outcome.FAULTED, reason=f"{agent} no longer runs it"))


async def _lock_unended(conn: asyncpg.Connection, lease_id: UUID) -> runs.RunRow | None:
    try:
        return await runs.lock_by_lease(conn, lease_id)
    except LeaseLost:
        return None


async def _record(conn: asyncpg.Connection, run: runs.RunRow, kind: str, text: str, *, level: str = "info") -> None:
    lease = run.current_lease
    await history.record(
        conn, run.id, kind, text, lease_id=lease.id, attempt=lease.attempt, level=level, state=run.state.value
    )

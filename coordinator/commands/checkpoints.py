"""Registers checkpoints and their copies: fenced by the lease, after their events, and then made the head (S5)."""

from __future__ import annotations

from uuid import UUID

import asyncpg

from coordinator.commands import retention
from coordinator.commands.events import select_evaluation
from coordinator.database.connections import Database
from coordinator.lifecycle import HeadMoved
from coordinator.store import checkpoints, history, leases, runs
from coordinator.values import CheckpointView, Copy, NewCheckpoint
from relay.errors import CheckpointRemoved, CheckpointUnknown, InvalidRequest, StartMissing


async def register(db: Database, lease_id: UUID, new: NewCheckpoint) -> CheckpointView:
    """Register one node's part; the last part completes the checkpoint and makes it the head. Idempotent by step and
    digest.
    """
    async with db.transaction() as conn:
        run = await runs.lock_by_lease(conn, lease_id)
        lease = run.current_lease
        if not lease.started:
            raise StartMissing
        if not new.required_cursors:
            raise InvalidRequest("`required_cursors` must say where the checkpoint's event line ends")
        if new.node not in {place.node for place in await leases.read_places(conn, lease_id)}:
            raise InvalidRequest(f"the lease has no node {new.node}")
        await leases.check_cursors(conn, lease_id, new.required_cursors)
        checkpoint_id, first = await _find_or_add(conn, lease, new)
        if await checkpoints.add_part(conn, checkpoint_id, new) != new.manifest_digest:
            raise InvalidRequest(f"step {new.step} of this attempt is registered with other content")
        await checkpoints.add_copies(conn, checkpoint_id, new.node, new.copies)
        if new.evaluation_due:  # it may have come meanwhile
            values = select_evaluation(await checkpoints.read_evaluation(conn, run.id, lease_id, new.step))
            if values:
                await checkpoints.add_evaluation(conn, lease_id, new.step, values)
        if await checkpoints.mark_complete(conn, checkpoint_id):
            await _move_head(conn, run, checkpoint_id, new)
            if first:
                await _warn_of_missing_metric(conn, run, new)
            await retention.apply_policy(conn, run.id, run.spec)
        return await _read_view(conn, checkpoint_id)


async def _find_or_add(conn: asyncpg.Connection, lease: leases.LeaseRow, new: NewCheckpoint) -> tuple[UUID, bool]:
    """Return the checkpoint's id, and True when it is the first that the lease registers."""
    if found := await checkpoints.find(conn, lease.id, new.step):
        return found, False
    last = await checkpoints.find_last_step(conn, lease.id)
    if last is not None and new.step <= last:
        raise InvalidRequest(f"step {new.step} is not beyond this attempt's last checkpoint, {last}")
    if new.step < lease.resumed_step:
        raise InvalidRequest(f"step {new.step} is before step {lease.resumed_step}, where this attempt resumed")
    return await checkpoints.add(conn, lease.run_id, lease.id, lease.attempt, new), last is None


async def _move_head(conn: asyncpg.Connection, run: runs.RunRow, checkpoint_id: UUID, new: NewCheckpoint) -> None:
    if not await checkpoints.move_head(conn, run.id, checkpoint_id):
        return
    await runs.apply(conn, run, HeadMoved())
    await history.record(
        conn,
        run.id,
        "checkpoint",
        f"step {new.step} is saved",
        lease_id=run.current_lease.id,
        attempt=run.current_lease.attempt,
        details={"checkpoint": str(checkpoint_id), "step": new.step, "metrics": dict(new.metrics)},
        state=run.state.value,
    )


async def _warn_of_missing_metric(conn: asyncpg.Connection, run: runs.RunRow, new: NewCheckpoint) -> None:
    """Say in the history when the first checkpoint of a command's attempt lacks the metric that the best are kept by.
    Trainers say it themselves, when they have evaluated.
    """
    metric = retention.parse_policy(run.spec).metric
    if run.spec.get("method") != "command" or not metric or metric in new.metrics:
        return
    reported = f"it has {', '.join(sorted(new.metrics))}" if new.metrics else "it has no metrics"
    await history.record(
        conn,
        run.id,
        "message",
        f"checkpoint.keep.metric: the checkpoint of step {new.step} was reported without {metric}; {reported}",
        lease_id=run.current_lease.id,
        attempt=run.current_lease.attempt,
        level="warning",
        state=run.state.value,
    )


async def _read_view(conn: asyncpg.Connection, checkpoint_id: UUID) -> CheckpointView:
    view = await checkpoints.get(conn, checkpoint_id)
    if view is None:
        raise CheckpointUnknown(f"there is no checkpoint {checkpoint_id}")
    return view


async def add_copy(db: Database, lease_id: UUID, checkpoint_id: UUID, node: int, copy: Copy) -> None:
    """Add a verified copy to a checkpoint of the lease's run."""
    async with db.transaction() as conn:
        run = await runs.lock_by_lease(conn, lease_id)
        view = await _require_part(conn, run, checkpoint_id, node)
        if await checkpoints.add_copies(conn, checkpoint_id, node, [copy]):
            await _record_copy(conn, run, view, copy, run.current_lease)
            if run.current_lease.started:
                await retention.apply_policy(conn, run.id, run.spec)


async def add_user_copy(
    db: Database, run_id: str, checkpoint_id: UUID, node: int, manifest_digest: str, copy: Copy
) -> None:
    """Add a verified copy that a user has made. It belongs to no lease, and the head does not move."""
    async with db.transaction() as conn:
        run = await runs.lock(conn, run_id)
        view = await _require_part(conn, run, checkpoint_id, node)
        if view.remove_time is not None:
            raise CheckpointRemoved(
                f"the checkpoint of step {view.step} is scheduled for deletion: {view.remove_reason}"
            )
        if await checkpoints.read_digest(conn, checkpoint_id, node) != manifest_digest:
            raise InvalidRequest(f"step {view.step} of this attempt is registered with other content")
        if await checkpoints.add_copies(conn, checkpoint_id, node, [copy]):
            await _record_copy(conn, run, view, copy, None)
            if run.lease is None or run.lease.started:
                await retention.apply_policy(conn, run.id, run.spec)


async def _require_part(conn: asyncpg.Connection, run: runs.RunRow, checkpoint_id: UUID, node: int) -> CheckpointView:
    view = await checkpoints.get(conn, checkpoint_id)
    if view is None or view.run_id != run.id or node not in {part.node for part in view.parts}:
        raise CheckpointUnknown(f"run {run.id} has no checkpoint {checkpoint_id} with a part of node {node}")
    return view


async def _record_copy(
    conn: asyncpg.Connection, run: runs.RunRow, view: CheckpointView, copy: Copy, by: leases.LeaseRow | None
) -> None:
    await history.record(
        conn,
        run.id,
        "copied",
        f"step {view.step} has a copy in {copy.store}",
        lease_id=by.id if by else None,
        attempt=by.attempt if by else 0,
        details={"checkpoint": str(view.id), "step": view.step, "store": copy.store, "uri": copy.uri},
        state=run.state.value,
    )

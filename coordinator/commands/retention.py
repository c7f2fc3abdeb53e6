"""Applies the retention rules, in the transactions that change what is kept. Whoever has the bytes deletes them.

The rules are in `coordinator.retention`, the tables in `coordinator.store.retention`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any
from uuid import UUID

import asyncpg

from coordinator import retention
from coordinator.database.connections import Database
from coordinator.retention import CheckpointFacts, RetentionDecision, RetentionPolicy
from coordinator.store import agents, checkpoints, history, runs
from coordinator.store import retention as store
from coordinator.values import Removal
from relay.errors import CheckpointRemoved, CheckpointUnknown, SessionReplaced
from runfile.models import CheckpointSection as Section


def parse_policy(spec: Mapping[str, Any]) -> RetentionPolicy:
    """Return the retention policy of a resolved run file."""
    asked = Section.model_validate(spec.get("checkpoint", {})).keep
    return RetentionPolicy(
        last=asked.last,
        best=asked.best,
        metric=asked.metric or "",
        least=asked.mode == "min",
        every_steps=asked.every.steps if asked.every else None,
        every_seconds=asked.every.seconds if asked.every else None,
        max_age=asked.max_age,
        max_total=asked.max_total,
    )


async def preview(conn: asyncpg.Connection, run_id: str, spec: Mapping[str, Any]) -> RetentionDecision[UUID]:
    """Return what would be decided now, without changing anything."""
    found, now = await store.read_kept(conn, run_id)
    return retention.decide(parse_policy(spec), found, now)


async def apply_policy(conn: asyncpg.Connection, run_id: str, spec: Mapping[str, Any]) -> None:
    """Schedule for deletion what a locked run need not keep. It must not be called before its attempt has started."""
    found, now = await store.read_kept(conn, run_id)
    reasons = retention.decide(parse_policy(spec), found, now).deleted
    if reasons:
        await store.schedule_deletion(conn, reasons)
        await _record_deletion(conn, run_id, found, reasons)


async def _record_deletion(
    conn: asyncpg.Connection, run_id: str, found: Sequence[CheckpointFacts[UUID]], reasons: Mapping[UUID, str]
) -> None:
    steps: defaultdict[str, list[int]] = defaultdict(list)
    for each in (each for each in found if each.id in reasons):
        steps[reasons[each.id]].append(each.step)
    text = "; ".join(f"{_join_steps(of)} scheduled for deletion: {why}" for why, of in steps.items())
    details = {"checkpoints": [str(each) for each in reasons], "steps": sorted(chain.from_iterable(steps.values()))}
    await _record(conn, run_id, text, details)


def _join_steps(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps[:10]] + ([f"{len(steps) - 10} more"] if len(steps) > 10 else [])
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(shown)}"


async def _record(
    conn: asyncpg.Connection, run_id: str, text: str, details: dict[str, Any], kind: str = "removed"
) -> None:
    row = await runs.lock_row(conn, run_id)
    assert row is not None
    await history.record(conn, run_id, kind, text, details=details, state=row["state"])


async def apply_policy_if_started(db: Database, run_id: str) -> None:
    """Apply the policy after a user's request or as time passes, unless an attempt is about to start and will apply it
    itself.
    """
    async with db.transaction() as conn:
        run = await runs.lock(conn, run_id)
        if run.lease is None or run.lease.started:
            await apply_policy(conn, run.id, run.spec)


async def apply_max_ages(db: Database) -> None:
    """Apply the policy of all runs whose checkpoints may have to be deleted because time passes."""
    async with db.connection() as conn:
        found = await store.find_runs_with_max_age(conn)
    for run_id in found:
        await apply_policy_if_started(db, run_id)


async def pin(db: Database, run_id: str, checkpoint_id: UUID, pinned: bool, reason: str) -> None:
    """Pin or unpin a checkpoint. CheckpointRemoved when it is scheduled for deletion already."""
    async with db.transaction() as conn:
        run = await runs.lock(conn, run_id)
        view = await checkpoints.get(conn, checkpoint_id)
        if view is None or view.run_id != run.id:
            raise CheckpointUnknown(f"run {run.id} has no checkpoint {checkpoint_id}")
        if pinned and view.remove_time is not None:
            raise CheckpointRemoved(
                f"the checkpoint of step {view.step} is scheduled for deletion: {view.remove_reason}"
            )
        if (view.pinned, view.pin_reason) == (pinned, reason):
            return
        await store.set_pin(conn, checkpoint_id, pinned, reason)
        text = f"step {view.step} is {'pinned' if pinned else 'no longer pinned'}" + (f": {reason}" if reason else "")
        details = {"verb": "pin" if pinned else "unpin", "checkpoint": str(checkpoint_id), "step": view.step}
        await _record(conn, run.id, text, details, "wanted")
        if not pinned and (run.lease is None or run.lease.started):
            await apply_policy(conn, run.id, run.spec)


async def list_removals(db: Database, agent: str, session_id: UUID, ttl: float, *, disk_low: bool) -> list[Removal]:
    """Return the copies that a host must delete. When its disk is low (`disk_low`), that includes copies which it can
    spare.

    A copy is kept for a TTL after it was scheduled for deletion: a failover may lose that decision, together with the
    newer checkpoint that was the reason for it.
    """
    async with db.connection() as conn:
        await _check_session(conn, agent, session_id)
        spare = await store.find_runs_with_spare_copies(conn, store.host_copy_uri(agent)) if disk_low else []
    for run_id in spare:
        await _delete_spare_copies(db, agent, run_id)
    async with db.connection() as conn:
        return await store.list_removals(conn, agent, ttl)


async def find_orphans(db: Database, sealed: Sequence[tuple[UUID, int]], ttl: float) -> list[tuple[UUID, int]]:
    """Return those checkpoints on a host's disk, by lease and step, that nothing will ever use."""
    async with db.connection() as conn:
        return await store.find_orphans(conn, sealed, ttl)


async def _delete_spare_copies(db: Database, agent: str, run_id: str) -> None:
    async with db.transaction() as conn:
        run = await runs.lock(conn, run_id)
        if run.lease is not None and not run.lease.started:
            return
        if steps := await store.mark_spare_copies(conn, run_id, store.host_copy_uri(agent)):
            text = f"{agent} is low on disk: its copies of {_join_steps(steps)} are scheduled for deletion"
            await _record(conn, run_id, text, {"agent": agent, "steps": steps})


async def report_removals(db: Database, agent: str, session_id: UUID, gone: Sequence[tuple[UUID, int, str]]) -> None:
    """Forget copies whose bytes have been deleted, if they were scheduled for deletion."""
    async with db.transaction() as conn:
        await _check_session(conn, agent, session_id)
        await store.forget_copies(conn, gone)


async def _check_session(conn: asyncpg.Connection, agent: str, session_id: UUID) -> None:
    if await agents.read_session(conn, agent) != session_id:
        raise SessionReplaced(f"{agent} has another session by now")

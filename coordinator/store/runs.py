"""The runs table: rows under lock, and the one place where a transition of the lifecycle is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.lifecycle import Change, Event, LeaseState, RunState, Status, Wanted, step
from coordinator.store import agents, history, leases, planning
from coordinator.store.leases import LeaseRow
from coordinator.store.statement import statement
from relay.errors import LeaseLost, RunUnknown

OVER = (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run whose row is locked, with its unended lease, which is locked too."""

    id: str
    status: Status
    attempts: int
    spec: Mapping[str, Any]
    request_digest: str
    eligible: bool  #: False during backoff
    lease: LeaseRow | None

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self.status.state

    @property
    def current_lease(self) -> LeaseRow:
        """Its unended lease; LeaseLost when there is none."""
        if self.lease is None:
            raise LeaseLost
        return self.lease


@dataclass(frozen=True, slots=True)
class RunDefinition:
    """What a run is to do, as requested. `digest` covers all of it."""

    spec: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]]
    digest: str
    pins: Mapping[str, str] = field(default_factory=dict)  #: what was resolved at submission
    waits_for: str | None = None  #: the run that has to succeed first


@statement
async def add(conn: asyncpg.Connection, run_id: str, definition: RunDefinition, provenance: Mapping[str, str]) -> bool:
    """Insert a queued run; return False when a run of this id exists."""
    added = await conn.fetchval(
        """INSERT INTO runs (id, state, wanted, spec, inputs, labels, priority, request_digest, pins, provenance,
                             waits_for)
           VALUES ($1, 'queued', 'run', $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING id""",
        run_id,
        definition.spec,
        list(definition.inputs),
        definition.spec.get("labels", {}),
        definition.spec.get("priority", 0),
        definition.digest,
        definition.pins,
        provenance,
        definition.waits_for,
    )
    return added is not None


@statement
async def redefine(conn: asyncpg.Connection, run_id: str, definition: RunDefinition) -> None:
    """Replace what a run is to do."""
    await conn.execute(
        """UPDATE runs SET spec = $2, inputs = $3, labels = $4, priority = $5, request_digest = $6, pins = pins || $7,
                  waits_for = $8
           WHERE id = $1""",
        run_id,
        definition.spec,
        list(definition.inputs),
        definition.spec.get("labels", {}),
        definition.spec.get("priority", 0),
        definition.digest,
        definition.pins,
        definition.waits_for,
    )


@statement
async def count_attempt(conn: asyncpg.Connection, run_id: str, attempt: int) -> None:
    """Record the number of the newest attempt."""
    await conn.execute("UPDATE runs SET attempts = $2 WHERE id = $1", run_id, attempt)


@statement
async def publish(conn: asyncpg.Connection, run_id: str, output: Mapping[str, Any]) -> None:
    """Record the run's result."""
    await conn.execute("UPDATE runs SET output = $2 WHERE id = $1", run_id, output)


async def lock(conn: asyncpg.Connection, run_id: str) -> RunRow:
    """Lock the run, then its unended lease, until the transaction ends, and return both; RunUnknown."""
    row = await lock_row(conn, run_id)
    if row is None:
        raise RunUnknown(f"there is no run {run_id}", run=run_id)
    lease = await leases.lock_unended(conn, run_id)
    status = Status(
        state=RunState(row["state"]),
        wanted=Wanted(row["wanted"]),
        lease=lease.state if lease else None,
        failures=row["failures"],
        faults=row["faults"],
        max_attempts=row["spec"].get("lifecycle", {}).get("max_attempts", 3),
    )
    if lease:
        status = replace(status, policy=lease.policy, stop=lease.stop)
    return RunRow(row["id"], status, row["attempts"], row["spec"], row["request_digest"], row["eligible"], lease)


@statement
async def lock_row(conn: asyncpg.Connection, run_id: str) -> Mapping[str, Any] | None:
    """Lock and return the run's row, with whether it is `eligible` now; None when there is no such run."""
    row: Mapping[str, Any] | None = await conn.fetchrow(
        """SELECT id, state, wanted, failures, faults, attempts, spec, request_digest,
                  COALESCE(eligible_time <= clock_timestamp(), true) AS eligible
           FROM runs WHERE id = $1 FOR NO KEY UPDATE""",
        run_id,
    )
    return row


async def lock_by_lease(conn: asyncpg.Connection, lease_id: UUID) -> RunRow:
    """Lock the run of a lease as `lock` does; LeaseLost unless the lease is the run's unended one (S2)."""
    run_id = await leases.find_run(conn, lease_id)
    if run_id is None:
        raise LeaseLost
    run = await lock(conn, run_id)
    if run.lease is None or run.lease.id != lease_id:
        raise LeaseLost
    return run


async def apply(
    conn: asyncpg.Connection,
    run: RunRow,
    event: Event,
    *,
    reason: str = "",
    error: Mapping[str, Any] | None = None,
    completion: Mapping[str, Any] | None = None,
) -> Change:
    """Apply one event to a locked run: write its row, its lease, the desired state of its agents, and the history of an
    end.

    `reason` is shown to users as the run's reason; `error` is what failed. IllegalTransition when the table has no
    entry.
    """
    change = step(run.status, event)
    if change.status == run.status and change.closing is None:
        return change
    shown = reason or (change.closing.reason if change.closing else "")
    await write_change(conn, run.id, change, shown, error)
    touched: list[str] = []
    if change.closing and run.lease:
        touched = await leases.end(conn, run.lease.id, change.closing, error=error, completion=completion)
        await _record_end(conn, run.lease, change, error)
    elif run.lease and change.status.lease:
        placed = await leases.change_state(conn, run.lease.id, change.status.lease, change.status.stop)
        touched = placed if change.status.stop is not run.status.stop else []
    await agents.publish_desired_change(conn, touched)
    if change.closing or change.status.state is RunState.QUEUED or change.status.lease is LeaseState.LAPSED:
        await planning.wake(conn)
    return change


@statement
async def write_change(
    conn: asyncpg.Connection, run_id: str, change: Change, reason: str, error: Mapping[str, Any] | None
) -> None:
    """Write the effect of a transition to the run's row.

    A user's reason for a stop (`cancelled by …: enough`) is not overwritten by the bare `cancelled` of the end.
    """
    after = change.status
    await conn.execute(
        """UPDATE runs SET state = $2, wanted = $3, failures = $4, faults = $5, update_time = clock_timestamp(),
                  end_time = CASE WHEN $6 THEN clock_timestamp() END,
                  eligible_time = CASE WHEN $7::float8 > 0 THEN clock_timestamp() + make_interval(secs => $7) END,
                  reason = CASE WHEN starts_with(reason, $8::text || ' by ') THEN reason ELSE $8 END,
                  error = CASE WHEN $2 = 'succeeded' THEN NULL WHEN $9 THEN $10 ELSE error END
           WHERE id = $1""",
        run_id,
        after.state.value,
        after.wanted.value,
        after.failures,
        after.faults,
        after.state in OVER,
        change.backoff,
        reason,
        error is not None,
        error,
    )


async def _record_end(
    conn: asyncpg.Connection, lease: LeaseRow, change: Change, error: Mapping[str, Any] | None
) -> None:
    closing, after = change.closing, change.status
    if closing is None:
        return
    wait = f"; tried again in {change.backoff:g} s" if change.backoff else ""
    shown = closing.reason or (str(error["message"]) if error else "")
    text = f"attempt {lease.attempt} {closing.outcome.value}" + (f": {shown}" if shown else "") + wait
    await history.record(
        conn,
        lease.run_id,
        "ended",
        text,
        lease_id=lease.id,
        attempt=lease.attempt,
        level="error" if after.state is RunState.FAILED else "warning" if error else "info",
        details={
            "outcome": closing.outcome.value,
            "reason": (error or {}).get("reason", ""),
            "failures": after.failures,
            "faults": after.faults,
            "backoff_seconds": change.backoff,
        },
        state=after.state.value,
    )

"""Leases and their places: the fence that every write of an agent passes, and how a lease begins and ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.database.connections import make_storable_text
from coordinator.lifecycle import Closing, LeaseState, Policy, RunState, StopReason
from coordinator.store.statement import statement
from coordinator.values import Cursor, HeldPlace, LeasePlace
from relay.errors import EventsMissing


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease that has not ended."""

    id: UUID
    run_id: str
    attempt: int
    state: LeaseState
    policy: Policy
    stop: StopReason | None
    started: bool
    resumed_from: UUID | None
    resumed_step: int

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> LeaseRow:
        """Build it from a row of the table."""
        return cls(
            id=row["id"],
            run_id=row["run_id"],
            attempt=row["attempt"],
            state=LeaseState(row["state"]),
            policy=Policy(row["policy"]),
            stop=StopReason(row["stop_reason"]) if row["stop_reason"] else None,
            started=row["start_time"] is not None,
            resumed_from=row["resumed_from"],
            resumed_step=row["resumed_step"],
        )


@statement
async def lock_unended(conn: asyncpg.Connection, run_id: str) -> LeaseRow | None:
    """Lock and return the unended lease of a run whose row the caller has locked."""
    row = await conn.fetchrow("SELECT * FROM leases WHERE run_id = $1 AND end_time IS NULL FOR NO KEY UPDATE", run_id)
    return LeaseRow.from_row(row) if row else None


async def begin(
    conn: asyncpg.Connection, run_id: str, attempt: int, policy: Policy, places: Iterable[LeasePlace], ttl: float
) -> UUID:
    """Insert a lease with its places and slots. UniqueViolationError when a slot or the run is taken (S9)."""
    lease_id = await add(conn, run_id, attempt, policy)
    for place in places:
        await add_place(conn, lease_id, place, ttl)
        await take_slots(conn, lease_id, place)
    return lease_id


@statement
async def add(conn: asyncpg.Connection, run_id: str, attempt: int, policy: Policy) -> UUID:
    """Insert a lease without places. UniqueViolationError when the run has an unended lease."""
    lease_id: UUID = await conn.fetchval(
        "INSERT INTO leases (run_id, attempt, state, policy) VALUES ($1, $2, 'held', $3) RETURNING id",
        run_id,
        attempt,
        policy.value,
    )
    return lease_id


@statement
async def add_place(conn: asyncpg.Connection, lease_id: UUID, place: LeasePlace, ttl: float) -> None:
    """Insert a place on an agent, with the agent's current session."""
    await conn.execute(
        """INSERT INTO places (lease_id, node, agent, session_id, boot_id, slots, expire_time)
           SELECT $1, $2, name, session_id, boot_id, $4, clock_timestamp() + make_interval(secs => $5)
           FROM agents WHERE name = $3""",
        lease_id,
        place.node,
        place.agent,
        list(place.slots),
        ttl,
    )


@statement
async def take_slots(conn: asyncpg.Connection, lease_id: UUID, place: LeasePlace) -> None:
    """Take the slots of a place. UniqueViolationError when one is taken."""
    await conn.execute(
        "INSERT INTO taken_slots (agent, slot, lease_id, node) SELECT $1, unnest($2::int[]), $3, $4",
        place.agent,
        list(place.slots),
        lease_id,
        place.node,
    )


async def end(
    conn: asyncpg.Connection,
    lease_id: UUID,
    closing: Closing,
    *,
    error: Mapping[str, Any] | None = None,
    completion: Mapping[str, Any] | None = None,
) -> list[str]:
    """End a lease, its places and their slots; return the agents whose desired state that changes."""
    await close_row(conn, lease_id, closing, error, completion)
    await free_slots(conn, lease_id)
    return await end_places(conn, lease_id)


@statement
async def close_row(
    conn: asyncpg.Connection,
    lease_id: UUID,
    closing: Closing,
    error: Mapping[str, Any] | None,
    completion: Mapping[str, Any] | None,
) -> None:
    """End the row of a lease."""
    await conn.execute(
        """UPDATE leases SET state = 'ended', end_time = clock_timestamp(), outcome = $2, reason = $3, error = $4,
                             completion = $5
           WHERE id = $1""",
        lease_id,
        closing.outcome.value,
        closing.reason,
        error,
        completion,
    )


@statement
async def free_slots(conn: asyncpg.Connection, lease_id: UUID) -> None:
    """Free the slots of a lease."""
    await conn.execute("DELETE FROM taken_slots WHERE lease_id = $1", lease_id)


@statement
async def end_places(conn: asyncpg.Connection, lease_id: UUID) -> list[str]:
    """End the places of a lease; return their agents."""
    rows = await conn.fetch(
        """WITH locked AS (SELECT node FROM places WHERE lease_id = $1 AND end_time IS NULL
                           ORDER BY node FOR NO KEY UPDATE)
           UPDATE places SET end_time = clock_timestamp() FROM locked
           WHERE lease_id = $1 AND places.node = locked.node RETURNING agent""",
        lease_id,
    )
    return [row["agent"] for row in rows]


async def change_state(
    conn: asyncpg.Connection, lease_id: UUID, state: LeaseState, stop: StopReason | None
) -> list[str]:
    """Set an unended lease to held or lapsed, and its stop reason; return its agents."""
    await write_state(conn, lease_id, state, stop)
    return [place.agent for place in await read_places(conn, lease_id)]


@statement
async def start(
    conn: asyncpg.Connection,
    lease_id: UUID,
    checkpoint_id: UUID | None,
    step: int,
    skipped: Sequence[Mapping[str, Any]],
) -> None:
    """Record that the lease's attempt has started, and from which checkpoint."""
    await conn.execute(
        """UPDATE leases SET start_time = clock_timestamp(), resumed_from = $2, resumed_step = $3, skipped = $4
           WHERE id = $1""",
        lease_id,
        checkpoint_id,
        step,
        list(skipped),
    )


@statement
async def record_fidelity(conn: asyncpg.Connection, lease_id: UUID, fidelity: str, reasons: Sequence[str]) -> None:
    """Record how exactly the lease's attempt resumed, as its trainer reports."""
    await conn.execute(
        "UPDATE leases SET fidelity = $2, fidelity_reasons = $3 WHERE id = $1",
        lease_id,
        fidelity,
        [make_storable_text(reason) for reason in reasons],
    )


@statement
async def write_state(conn: asyncpg.Connection, lease_id: UUID, state: LeaseState, stop: StopReason | None) -> None:
    """Set an unended lease to held or lapsed, and its stop reason."""
    await conn.execute(
        "UPDATE leases SET state = $2, stop_reason = $3 WHERE id = $1",
        lease_id,
        state.value,
        stop.value if stop else None,
    )


@statement
async def find_run(conn: asyncpg.Connection, lease_id: UUID) -> str | None:
    """Return the run of a lease, without a lock; None when there is no such lease."""
    run_id: str | None = await conn.fetchval("SELECT run_id FROM leases WHERE id = $1", lease_id)
    return run_id


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """Whether a lease has ended, the report that completed it, and the state of its run."""

    ended: bool
    digest: str | None  #: of the report that completed it
    run_state: RunState


@statement
async def lock_end(conn: asyncpg.Connection, lease_id: UUID) -> LeaseEnd | None:
    """Lock a lease and its run and return whether and how the lease has ended; None when there is no such lease."""
    row = await conn.fetchrow(
        """SELECT l.end_time, l.completion, r.state FROM runs r JOIN leases l ON l.run_id = r.id WHERE l.id = $1
           FOR NO KEY UPDATE OF r, l""",
        lease_id,
    )
    if row is None:
        return None
    return LeaseEnd(row["end_time"] is not None, (row["completion"] or {}).get("digest"), RunState(row["state"]))


@statement
async def read_places(conn: asyncpg.Connection, lease_id: UUID) -> list[LeasePlace]:
    """Return the places of a lease by node."""
    rows = await conn.fetch("SELECT node, agent, slots FROM places WHERE lease_id = $1 ORDER BY node", lease_id)
    return [LeasePlace(row["node"], row["agent"], tuple(row["slots"])) for row in rows]


async def check_cursors(conn: asyncpg.Connection, lease_id: UUID, needed: Sequence[Cursor]) -> None:
    """Raise EventsMissing unless every source is stored at least as far as required."""
    stored = {(cursor.node, cursor.source): cursor.offset for cursor in await read_cursors(conn, lease_id)}
    for cursor in needed:
        have = stored.get((cursor.node, cursor.source), 0)
        if have < cursor.offset:
            raise EventsMissing(
                f"{cursor.source} of node {cursor.node} is stored up to byte {have}, not {cursor.offset}",
                source=cursor.source,
                node=str(cursor.node),
                expected=str(have),
            )


@statement
async def read_cursors(conn: asyncpg.Connection, lease_id: UUID) -> list[Cursor]:
    """Return how far each source of a lease is stored."""
    rows = await conn.fetch(
        "SELECT node, source, offset_bytes FROM cursors WHERE lease_id = $1 ORDER BY node, source", lease_id
    )
    return [Cursor(row["node"], row["source"], row["offset_bytes"]) for row in rows]


@statement
async def renew(conn: asyncpg.Connection, held: Sequence[tuple[str, UUID, HeldPlace]], ttl: float) -> list[UUID]:
    """Renew the places that agents list, by (agent, session, place); return the renewed leases that had lapsed.

    A place is renewed when its lease has not ended, it belongs to that agent, and the session is the agent's current
    one.
    """
    rows = await conn.fetch(
        """WITH listed AS (
             SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::int[]) AS h(agent, session_id, lease_id, node)
           ), locked AS MATERIALIZED (
             SELECT p.lease_id, p.node, h.session_id FROM places p JOIN listed h USING (lease_id, node, agent)
             WHERE p.end_time IS NULL ORDER BY p.lease_id, p.node FOR NO KEY UPDATE OF p
           ), renewed AS (
             UPDATE places p
             SET expire_time = clock_timestamp() + make_interval(secs => $5), reported = true, session_id = k.session_id
             FROM locked k, agents a
             WHERE p.lease_id = k.lease_id AND p.node = k.node AND p.end_time IS NULL
               AND a.name = p.agent AND a.session_id = k.session_id
             RETURNING p.lease_id
           )
           SELECT DISTINCT l.id FROM renewed JOIN leases l ON l.id = renewed.lease_id
           WHERE l.state = 'lapsed' ORDER BY l.id""",
        [agent for agent, _, _ in held],
        [session for _, session, _ in held],
        [item.lease_id for _, _, item in held],
        [item.node for _, _, item in held],
        ttl,
    )
    return [row["id"] for row in rows]


#: Whether the agent `a` lists the place `p`.
LISTED = "a.held @> jsonb_build_array(jsonb_build_object('lease', p.lease_id::text, 'node', p.node))"
#: Whether it should and does not: granted to an earlier session and not in this one's `held`, or reported before and
#: dropped.
LOST = f"(p.reported OR p.session_id <> a.session_id) AND NOT {LISTED}"
#: Such places end. Under `stop` another boot proves nothing (a clone looks like a reboot): that waits for the lapse.
_MISSING = f"""FROM places p JOIN agents a ON a.name = p.agent JOIN leases l ON l.id = p.lease_id
               WHERE p.end_time IS NULL AND l.end_time IS NULL AND a.session_id IS NOT NULL AND {LOST}
                 AND NOT (l.policy = 'stop' AND p.boot_id <> a.boot_id)"""


@statement
async def find_missing(conn: asyncpg.Connection, agents: Sequence[str]) -> list[UUID]:
    """Return the leases of which a place is missing from the last heartbeat of its agent."""
    rows = await conn.fetch(
        f"SELECT DISTINCT p.lease_id {_MISSING} AND p.agent = ANY($1) ORDER BY p.lease_id", list(agents)
    )
    return [row["lease_id"] for row in rows]


@statement
async def find_missing_agent(conn: asyncpg.Connection, lease_id: UUID) -> str | None:
    """Return the agent that should hold a place of the lease and does not; None when no place is missing."""
    agent: str | None = await conn.fetchval(
        f"SELECT p.agent {_MISSING} AND p.lease_id = $1 ORDER BY p.node LIMIT 1", lease_id
    )
    return agent


@statement
async def find_expired(conn: asyncpg.Connection, at: datetime) -> list[UUID]:
    """Return the held leases of which a place had expired at this moment of the database's clock, and still has."""
    rows = await conn.fetch(
        """SELECT DISTINCT l.id FROM leases l JOIN places p ON p.lease_id = l.id
           WHERE l.end_time IS NULL AND l.state = 'held' AND p.expire_time < LEAST($1, clock_timestamp())
           ORDER BY l.id""",
        at,
    )
    return [row["id"] for row in rows]


@statement
async def find_expired_agent(conn: asyncpg.Connection, lease_id: UUID, at: datetime | None = None) -> str | None:
    """Return an agent whose place of the lease has expired by the database's clock; None when none has.

    The places are locked first, so that a renewal that is being written counts. With `at`, the place must have expired
    by that moment too: a clock that was set since must not surprise a caller that has judged that moment (F13).
    """
    rows = await conn.fetch(
        """SELECT agent, expire_time < LEAST($2::timestamptz, clock_timestamp()) AS over FROM places
           WHERE lease_id = $1 AND end_time IS NULL ORDER BY node FOR NO KEY UPDATE""",
        lease_id,
        at,
    )
    return next((row["agent"] for row in rows if row["over"]), None)

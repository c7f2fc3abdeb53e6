"""The deployment's one row: which database this is and what the reaper saw of time; and which replica leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.database.connections import DatabaseAway
from coordinator.lifecycle import MAX_BACKOFF
from coordinator.store.statement import statement


@statement
async def read_deployment_id(conn: asyncpg.Connection) -> UUID:
    """Return the id of the deployment, which stays the same however often its database is moved."""
    found: UUID = await conn.fetchval("SELECT deployment_id FROM deployment")
    return found


@dataclass(frozen=True, slots=True)
class DatabaseIdentity:
    """Identifies a database. A promotion raises the timeline; a restored copy has another oid or system identifier."""

    system: str
    oid: int
    timeline: int


@statement
async def read_identity(conn: asyncpg.Connection) -> DatabaseIdentity:
    """Return the identity of the database that answers; DatabaseAway when it is a standby, which cannot write."""
    if await conn.fetchval("SELECT pg_is_in_recovery()"):
        raise DatabaseAway("a standby answers, not the primary")
    row = await conn.fetchrow(
        """SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system,
                  (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS oid,
                  ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint AS timeline"""
    )
    return DatabaseIdentity(row["system"], row["oid"], row["timeline"])


@statement
async def lock_remembered_identity(conn: asyncpg.Connection) -> DatabaseIdentity | None:
    """Lock the deployment's row and return the identity that it remembers; None before the first check."""
    return _remembered_identity(await conn.fetchrow("SELECT * FROM deployment FOR NO KEY UPDATE"))


def _remembered_identity(row: asyncpg.Record) -> DatabaseIdentity | None:
    if row["system_identifier"] is None:
        return None
    return DatabaseIdentity(row["system_identifier"], row["database_oid"], row["timeline"])


@statement
async def remember_identity(conn: asyncpg.Connection, found: DatabaseIdentity) -> None:
    """Remember this identity as the deployment's database."""
    await conn.execute(
        "UPDATE deployment SET system_identifier = $1, database_oid = $2, timeline = $3",
        found.system,
        found.oid,
        found.timeline,
    )


@statement
async def withhold_stop_runs(conn: asyncpg.Connection, ttl: float) -> None:
    """Withhold all `stop` runs for a TTL: an older holder that this database does not know may still train."""
    await conn.execute("UPDATE deployment SET stop_grants_after = clock_timestamp() + make_interval(secs => $1)", ttl)


async def are_stop_runs_withheld(conn: asyncpg.Connection) -> bool:
    """Return whether `stop` runs are withheld now, or the database is another one that no reaper has recognised yet."""
    withheld, known = await read_withholding(conn)
    return withheld or known not in (None, await read_identity(conn))


@statement
async def read_withholding(conn: asyncpg.Connection) -> tuple[bool, DatabaseIdentity | None]:
    """Return whether `stop` runs are withheld now, and the remembered identity, without a lock."""
    row = await conn.fetchrow("SELECT *, stop_grants_after > clock_timestamp() AS withheld FROM deployment")
    return bool(row["withheld"]), _remembered_identity(row)


@statement
async def extend_places(conn: asyncpg.Connection, ttl: float) -> None:
    """Make every place expire a full TTL from now."""
    await conn.execute(
        """WITH locked AS (SELECT lease_id, node FROM places WHERE end_time IS NULL
                           ORDER BY lease_id, node FOR NO KEY UPDATE)
           UPDATE places p SET expire_time = clock_timestamp() + make_interval(secs => $1)
           FROM locked k WHERE p.lease_id = k.lease_id AND p.node = k.node""",
        ttl,
    )


@dataclass(frozen=True, slots=True)
class ReaperClock:
    """The reaper's times, all the database's: now, its last tick, and the end of the last grace period."""

    now: datetime
    tick: datetime | None
    lapses_after: datetime | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ReaperClock:
        """Build it from the deployment's row and the current time."""
        return cls(row["now"], row["reaper_tick"], row["lapses_after"])


@statement
async def lock_clock(conn: asyncpg.Connection) -> ReaperClock:
    """Lock the deployment's row and return the reaper's times."""
    return ReaperClock.from_row(
        await conn.fetchrow(
            "SELECT clock_timestamp() AS now, reaper_tick, lapses_after FROM deployment FOR NO KEY UPDATE"
        )
    )


@statement
async def record_tick(conn: asyncpg.Connection, now: datetime, grace: float | None) -> None:
    """Record the tick, and let nothing lapse for `grace` seconds when it is not None."""
    await conn.execute(
        """UPDATE deployment SET reaper_tick = $1::timestamptz,
                  lapses_after = CASE WHEN $2::float8 IS NULL THEN lapses_after
                                      ELSE $1::timestamptz + make_interval(secs => $2) END""",
        now,
        grace,
    )


@statement
async def read_heartbeat_ages(conn: asyncpg.Connection, now: datetime, recent: float) -> list[float]:
    """Return the seconds since the last heartbeat of each agent that holds something or was heard within `recent`."""
    rows = await conn.fetch(
        """SELECT extract(epoch FROM $1::timestamptz - GREATEST(heartbeat_time, connect_time))::float8 AS heartbeat_age
           FROM agents a
           WHERE heartbeat_time IS NOT NULL AND (
             EXISTS (SELECT FROM places p WHERE p.agent = a.name AND p.end_time IS NULL)
             OR (NOT leaving AND heartbeat_time > $1::timestamptz - make_interval(secs => $2)))""",
        now,
        recent,
    )
    return [row["heartbeat_age"] for row in rows]


async def clamp_future_times(conn: asyncpg.Connection, ttl: float) -> None:
    """Repair times after the clock was set back: no heartbeat is later than now, no place and no backoff lasts too
    long.

    Locks runs, then places, then agents, as every transaction does.
    """
    await shorten_backoffs(conn, MAX_BACKOFF)
    await shorten_places(conn, ttl)
    await clamp_agent_times(conn)
    await shorten_withholding(conn, ttl)


@statement
async def shorten_backoffs(conn: asyncpg.Connection, longest: float) -> None:
    """Make no queued run wait longer than `longest` seconds."""
    await conn.execute(
        """WITH locked AS (SELECT id FROM runs
                           WHERE state = 'queued' AND eligible_time > clock_timestamp() + make_interval(secs => $1)
                           ORDER BY id FOR NO KEY UPDATE)
           UPDATE runs r SET eligible_time = clock_timestamp() + make_interval(secs => $1)
           FROM locked k WHERE r.id = k.id""",
        longest,
    )


@statement
async def shorten_places(conn: asyncpg.Connection, ttl: float) -> None:
    """Make no place last longer than a TTL."""
    await conn.execute(
        """WITH locked AS (SELECT lease_id, node FROM places
                           WHERE end_time IS NULL AND expire_time > clock_timestamp() + make_interval(secs => $1)
                           ORDER BY lease_id, node FOR NO KEY UPDATE)
           UPDATE places p SET expire_time = clock_timestamp() + make_interval(secs => $1)
           FROM locked k WHERE p.lease_id = k.lease_id AND p.node = k.node""",
        ttl,
    )


@statement
async def clamp_agent_times(conn: asyncpg.Connection) -> None:
    """Set heartbeats and connections that are later than now to now."""
    await conn.execute(
        """WITH locked AS (SELECT name FROM agents WHERE GREATEST(heartbeat_time, connect_time) > clock_timestamp()
                           ORDER BY name FOR NO KEY UPDATE)
           UPDATE agents a SET heartbeat_time = clock_timestamp(), connect_time = clock_timestamp()
           FROM locked k WHERE a.name = k.name"""
    )


@statement
async def shorten_withholding(conn: asyncpg.Connection, ttl: float) -> None:
    """Withhold `stop` runs for at most a TTL."""
    await conn.execute(
        """UPDATE deployment SET stop_grants_after = clock_timestamp() + make_interval(secs => $1)
           WHERE stop_grants_after > clock_timestamp() + make_interval(secs => $1)""",
        ttl,
    )


@statement
async def list_unended_leases(conn: asyncpg.Connection) -> list[UUID]:
    """Return the ids of all leases that have not ended."""
    return [row["id"] for row in await conn.fetch("SELECT id FROM leases WHERE end_time IS NULL ORDER BY id")]


@statement
async def try_lead(conn: asyncpg.Connection, key: int) -> bool:
    """Try to take the advisory lock of the key for this connection, without waiting; return whether it has it."""
    leads: bool = await conn.fetchval("SELECT pg_try_advisory_lock($1)", key)
    return leads


@statement
async def check_leadership(conn: asyncpg.Connection) -> None:
    """Check that the connection, and its advisory lock with it, still exists."""
    await conn.execute("SELECT 1")

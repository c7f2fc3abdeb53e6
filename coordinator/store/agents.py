"""The agents table: identities, sessions, the last heartbeat, and the version of each agent's desired state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.store.statement import statement
from coordinator.values import Heartbeat, Hello
from relay.errors import AgentUnknown

RETIRED = 100  #: instances that are remembered as replaced, per agent


async def lock(conn: asyncpg.Connection, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Lock and return the rows of agents by name, in that order, each with `heartbeat_age`; AgentUnknown."""
    wanted = sorted(set(names))
    found = {row["name"]: row for row in await lock_rows(conn, wanted)}
    for name in wanted:
        if name not in found:
            raise AgentUnknown(f"there is no agent {name}", agent=name)
    return found


@statement
async def lock_rows(conn: asyncpg.Connection, names: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Lock and return the rows of agents that exist, by name; `heartbeat_age` is since the last heartbeat."""
    found: Sequence[Mapping[str, Any]] = await conn.fetch(
        """SELECT *, clock_timestamp() - GREATEST(heartbeat_time, connect_time) AS heartbeat_age
           FROM agents WHERE name = ANY($1) ORDER BY name FOR NO KEY UPDATE""",
        list(names),
    )
    return found


async def publish_desired_change(conn: asyncpg.Connection, names: Sequence[str]) -> None:
    """Raise the desired version of agents and make their sessions push a reply once the transaction commits."""
    if names:
        await raise_desired_versions(conn, names)
        await announce(conn, names)


@statement
async def read_session(conn: asyncpg.Connection, name: str) -> UUID | None:
    """Return the session id of an agent, None when it has no session."""
    session_id: UUID | None = await conn.fetchval("SELECT session_id FROM agents WHERE name = $1", name)
    return session_id


@statement
async def raise_desired_versions(conn: asyncpg.Connection, names: Sequence[str]) -> None:
    """Raise the version of the desired state of agents (column `wish_version`)."""
    await conn.execute(
        """WITH locked AS (SELECT name FROM agents WHERE name = ANY($1) ORDER BY name FOR NO KEY UPDATE)
           UPDATE agents SET wish_version = wish_version + 1 FROM locked WHERE agents.name = locked.name""",
        list(names),
    )


@statement
async def announce(conn: asyncpg.Connection, names: Iterable[str]) -> None:
    """Wake the live sessions of agents, on every replica, once the transaction commits (channel `relay_wishes`)."""
    await conn.execute("SELECT pg_notify('relay_wishes', name) FROM unnest($1::text[]) AS name", list(set(names)))


async def ensure(conn: asyncpg.Connection, hello: Hello) -> Mapping[str, Any]:
    """Return the agent's row, locked; insert it when the agent is new."""
    await add(conn, hello)
    return (await lock(conn, [hello.agent]))[hello.agent]


@statement
async def add(conn: asyncpg.Connection, hello: Hello) -> None:
    """Insert the agent's row, unless it exists."""
    await conn.execute(
        "INSERT INTO agents (name, instance_id, boot_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        hello.agent,
        hello.instance_id,
        hello.boot_id,
    )


@statement
async def begin_session(conn: asyncpg.Connection, hello: Hello, retired: Sequence[str]) -> UUID:
    """Give the agent a new session; from then on its older session cannot renew anything.

    What the hello reports of leases and readiness is valid from this moment: nothing is judged by the older session.
    """
    session_id: UUID = await conn.fetchval(
        """UPDATE agents SET session_id = gen_random_uuid(), instance_id = $2, boot_id = $3, retired_instances = $4,
                  capability = $5, labels = $6, slots = $7, connect_time = clock_timestamp(), disconnect_time = NULL,
                  heartbeat_time = clock_timestamp(), held = $8, ready = $9, readiness_reason = $10, leaving = $11,
                  dial = $12
           WHERE name = $1 RETURNING session_id""",
        hello.agent,
        hello.instance_id,
        hello.boot_id,
        list(retired)[-RETIRED:],
        hello.capability,
        hello.labels,
        list(hello.slots),
        [held.to_json() for held in hello.held],
        hello.readiness.ready,
        hello.readiness.reason,
        hello.readiness.leaving,
        hello.dial,
    )
    return session_id


@statement
async def end_session(conn: asyncpg.Connection, agent: str, session_id: UUID) -> None:
    """Record that the session's stream ended, unless a newer session has begun."""
    await conn.execute(
        "UPDATE agents SET disconnect_time = clock_timestamp() WHERE name = $1 AND session_id = $2", agent, session_id
    )


@statement
async def end_sessions(conn: asyncpg.Connection) -> list[str]:
    """End the session of every agent; return the names of all agents."""
    ended = await conn.fetch(
        """WITH locked AS (SELECT name FROM agents ORDER BY name FOR NO KEY UPDATE)
           UPDATE agents a SET session_id = NULL FROM locked WHERE a.name = locked.name RETURNING a.name"""
    )
    return [row["name"] for row in ended]


@statement
async def record_heartbeats(conn: asyncpg.Connection, heartbeats: Sequence[Heartbeat]) -> bool:
    """Store the heartbeats of agents whose session is still current; return True when capacity may have become free."""
    changes = await conn.fetch(
        """WITH pulse AS (
             SELECT name, session_id, held::jsonb, readings::jsonb, ready, reason, leaving
             FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::bool[], $6::text[], $7::bool[])
               AS p(name, session_id, held, readings, ready, reason, leaving)
           ), old AS MATERIALIZED (
             SELECT a.name, a.held, a.ready, a.leaving
             FROM agents a JOIN pulse p ON p.name = a.name AND p.session_id = a.session_id
             ORDER BY a.name FOR NO KEY UPDATE OF a
           )
           UPDATE agents a
           SET heartbeat_time = clock_timestamp(), held = p.held, ready = p.ready,
               readings = COALESCE(p.readings, a.readings), readiness_reason = p.reason, leaving = p.leaving
           FROM pulse p JOIN old ON old.name = p.name
           WHERE a.name = p.name AND a.session_id = p.session_id
           RETURNING old.held <> p.held OR old.ready <> p.ready OR old.leaving <> p.leaving AS changed""",
        [heartbeat.agent for heartbeat in heartbeats],
        [heartbeat.session_id for heartbeat in heartbeats],
        [
            json.dumps([held.to_json() for held in heartbeat.held]) for heartbeat in heartbeats
        ],  # a list would add a dimension
        [None if heartbeat.readings is None else json.dumps(heartbeat.readings) for heartbeat in heartbeats],
        [heartbeat.readiness.ready for heartbeat in heartbeats],
        [heartbeat.readiness.reason for heartbeat in heartbeats],
        [heartbeat.readiness.leaving for heartbeat in heartbeats],
    )
    return any(row["changed"] for row in changes)

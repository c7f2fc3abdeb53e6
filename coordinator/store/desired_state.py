"""The desired state of agents, read in one statement, so that a heartbeat reply never mixes two moments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.lifecycle import STOP_GRACE, Policy, StopReason
from coordinator.store import checkpoints, leases
from coordinator.store.statement import statement
from coordinator.values import Assignment, DesiredLease, DesiredState, LeaseRecord


async def read(conn: asyncpg.Connection, agents: Sequence[str]) -> dict[str, DesiredState]:
    """Return the whole desired state of each agent, as one snapshot; an agent that is not in this database has no
    session.
    """
    rows = await read_rows(conn, agents)
    leases_of: defaultdict[str, list[DesiredLease]] = defaultdict(list)
    heads: dict[str, tuple[UUID | None, int]] = dict.fromkeys(agents, (None, 0))
    heads |= {row["name"]: (row["session_id"], row["wish_version"]) for row in rows}
    for row in rows:
        if row["lease_id"] is not None:
            assignment = None if row["listed"] else await _assignment(conn, row["run_id"], row["lease_id"])
            leases_of[row["name"]].append(_desired_lease(row, assignment))
    return {
        name: DesiredState(name, session, version, tuple(leases_of[name])) for name, (session, version) in heads.items()
    }


@statement
async def read_rows(conn: asyncpg.Connection, agents: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Return each agent with each place that is desired of it, and whether the agent has `listed` it.

    A place that the agent should hold and does not is left out and never started again: under `stop` another boot of
    that name may be a clone, while the first host's trainer still runs (S3).
    """
    rows: Sequence[Mapping[str, Any]] = await conn.fetch(
        f"""SELECT a.name, a.session_id, a.wish_version, p.lease_id, p.node, p.slots, l.run_id, l.attempt, l.policy,
                  l.stop_reason, {leases.LISTED} AS listed
           FROM agents a
           LEFT JOIN (places p JOIN leases l ON l.id = p.lease_id AND l.end_time IS NULL)
             ON p.agent = a.name AND p.end_time IS NULL AND NOT ({leases.LOST})
           WHERE a.name = ANY($1) ORDER BY a.name, l.grant_time, l.id, p.node""",
        list(agents),
    )
    return rows


def _desired_lease(row: Mapping[str, Any], assignment: Assignment | None) -> DesiredLease:
    return DesiredLease(
        lease_id=row["lease_id"],
        run_id=row["run_id"],
        attempt=row["attempt"],
        node=row["node"],
        slots=tuple(row["slots"]),
        policy=Policy(row["policy"]),
        stop=StopReason(row["stop_reason"]) if row["stop_reason"] else None,
        grace=STOP_GRACE,
        assignment=assignment,
    )


async def _assignment(conn: asyncpg.Connection, run_id: str, lease_id: UUID) -> Assignment:
    row = await read_definition(conn, run_id)
    return Assignment(
        spec=row["spec"],
        inputs=tuple(row["inputs"]),
        pins=row["pins"],
        places=tuple(await leases.read_places(conn, lease_id)),
        checkpoints=tuple(await checkpoints.list_resumable(conn, run_id)),
    )


@statement
async def read_definition(conn: asyncpg.Connection, run_id: str) -> Mapping[str, Any]:
    """Return the spec, the inputs and the pins of a run."""
    row: Mapping[str, Any] = await conn.fetchrow("SELECT spec, inputs, pins FROM runs WHERE id = $1", run_id)
    return row


async def read_lease_records(conn: asyncpg.Connection, agent: str, held: Sequence[UUID]) -> list[LeaseRecord]:
    """Return what is stored of those leases that have not ended and have a place on the agent."""
    return [
        LeaseRecord(
            row["id"],
            row["run_id"],
            row["start_time"] is not None,
            tuple(await leases.read_cursors(conn, row["id"])),
            tuple(await checkpoints.list_of_lease(conn, row["id"])),
        )
        for row in await find_leases_on(conn, agent, held)
    ]


@statement
async def find_leases_on(conn: asyncpg.Connection, agent: str, held: Sequence[UUID]) -> Sequence[Mapping[str, Any]]:
    """Return those of the leases that have not ended and have a place on the agent."""
    rows: Sequence[Mapping[str, Any]] = await conn.fetch(
        """SELECT DISTINCT l.id, l.run_id, l.start_time FROM leases l JOIN places p ON p.lease_id = l.id
           WHERE l.id = ANY($1) AND l.end_time IS NULL AND p.agent = $2 ORDER BY l.id""",
        list(held),
        agent,
    )
    return rows

"""The planner's input: the queue and the fleet at one moment, as the pure scheduler takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

import asyncpg

from coordinator.lifecycle import Policy
from coordinator.scheduling import GIB, ClaimableRun, HostCapacity, Need
from coordinator.store.statement import statement

AVOID_WITHIN = "10 minutes"  #: for so long after a fault another host is preferred


@dataclass(frozen=True, slots=True)
class PlanningSnapshot:
    """Queue, fleet and time. `withheld` are `stop` runs that may not be granted yet, and until when."""

    queue: list[ClaimableRun]
    fleet: list[HostCapacity]
    now: datetime
    withheld: dict[str, datetime]


async def read_snapshot(conn: asyncpg.Connection, ttl: float) -> PlanningSnapshot:
    """Return everything that the plan depends on."""
    now, after = await read_time(conn)
    queue = [(_claimable(row), parse_policy(row["spec"])) for row in await read_claimable(conn)]
    withheld = {
        claim.run: after for claim, policy in queue if after is not None and after > now and policy is Policy.STOP
    }
    return PlanningSnapshot(
        [claim for claim, _ in queue if claim.run not in withheld], await read_fleet(conn, ttl), now, withheld
    )


@statement
async def wake(conn: asyncpg.Connection) -> None:
    """Wake the planner once the transaction commits."""
    await conn.execute("SELECT pg_notify('relay_queue', '')")


@statement
async def read_time(conn: asyncpg.Connection) -> tuple[datetime, datetime | None]:
    """Return the database's time, and until when no `stop` run may be granted."""
    row = await conn.fetchrow("SELECT clock_timestamp() AS now, stop_grants_after FROM deployment")
    return row["now"], row["stop_grants_after"]


@statement
async def read_claimable(conn: asyncpg.Connection) -> Sequence[Mapping[str, Any]]:
    """Return the runs that wait for a host, or whose lease has lapsed, with what they need and hosts to prefer or to
    avoid.
    """
    rows: Sequence[Mapping[str, Any]] = await conn.fetch(
        f"""SELECT r.id, r.priority, r.create_time, r.eligible_time, jsonb_strip_nulls(jsonb_build_object(
                     'resources', r.spec -> 'resources', 'lifecycle', r.spec -> 'lifecycle')) AS spec,
                   ARRAY(SELECT DISTINCT substr(y.uri, length('host://agents/') + 1) FROM checkpoint_copies y
                         WHERE y.checkpoint_id = r.head_id AND y.store = 'host') AS near,
                   ARRAY(SELECT DISTINCT p.agent FROM leases l JOIN places p ON p.lease_id = l.id
                         WHERE l.run_id = r.id AND l.outcome = 'faulted'
                           AND l.end_time > clock_timestamp() - interval '{AVOID_WITHIN}') AS avoid
            FROM runs r
            WHERE r.wanted = 'run' AND r.waits_for IS NULL AND (r.state = 'queued' OR (r.state = 'running' AND EXISTS (
                SELECT FROM leases l JOIN places p ON p.lease_id = l.id
                WHERE l.run_id = r.id AND l.end_time IS NULL AND l.state = 'lapsed'
                  AND p.expire_time < clock_timestamp())))"""
    )
    return rows


def parse_policy(spec: Mapping[str, Any]) -> Policy:
    """Return what the run file says about lost contact."""
    return Policy(spec.get("lifecycle", {}).get("on_disconnect", "continue"))


def _claimable(row: Mapping[str, Any]) -> ClaimableRun:
    return ClaimableRun(
        run=row["id"],
        need=parse_need(row["spec"]),
        create_time=row["create_time"],
        priority=row["priority"],
        eligible_time=row["eligible_time"],
        near=frozenset(row["near"]),
        avoid=frozenset(row["avoid"]),
    )


def parse_need(spec: Mapping[str, Any]) -> Need:
    """Return the resources that a resolved run file asks for on each host."""
    resources: Mapping[str, Any] = spec.get("resources", {})
    nodes = resources.get("nodes", 1)
    return Need(
        nodes=nodes["min"] if isinstance(nodes, Mapping) else int(nodes),
        gpus=int(resources.get("gpus_per_node", 1)),
        require_cuda=bool(resources.get("require_cuda", False)),
        vram=_bytes(resources.get("vram_gib")),
        memory=_bytes(resources.get("ram_gib")),
        disk=_bytes(resources.get("disk_gib")),
        cpus=int(resources.get("cpus") or 0),
        labels=resources.get("labels", {}),
        allowed_hosts=frozenset(resources.get("allowed_hosts", ())),
        prefer_hosts=tuple(resources.get("prefer_hosts", ())),
    )


def _bytes(gib: float | None) -> int:
    return int((gib or 0) * GIB)


async def read_fleet(conn: asyncpg.Connection, ttl: float) -> list[HostCapacity]:
    """Return the capacity of every host. A slot is free when no unended lease has it and no heartbeat lists it."""
    return [build_capacity(row) for row in await read_hosts(conn, ttl)]


@statement
async def read_hosts(conn: asyncpg.Connection, ttl: float) -> Sequence[Mapping[str, Any]]:
    """Return every agent's row by name, with whether its last heartbeat is too old (`quiet`) and its `taken` slots."""
    rows: Sequence[Mapping[str, Any]] = await conn.fetch(
        """SELECT a.*, COALESCE(a.heartbeat_time < clock_timestamp() - make_interval(secs => $1), true) AS quiet,
                  ARRAY(SELECT slot FROM taken_slots t WHERE t.agent = a.name) AS taken
           FROM agents a ORDER BY a.name""",
        ttl,
    )
    return rows


def build_capacity(row: Mapping[str, Any]) -> HostCapacity:
    """Return the capacity of a host from its agent's row with `quiet` and `taken`."""
    capability: Mapping[str, Any] = row["capability"]
    dying = {slot for held in row["held"] for slot in held["slots"]}
    free = sorted(set(row["slots"]) - set(row["taken"]) - dying)
    return HostCapacity(
        name=row["name"],
        free=tuple(free),
        slots=len(row["slots"]),
        session=row["session_id"],
        gpus={gpu.get("index", 0): int(gpu.get("memory_bytes", 0)) for gpu in capability.get("gpus", ())},
        cpus=capability.get("cpus", 0),
        memory=int(capability.get("memory_bytes", 0)),
        disk=int(row["readings"].get("disk_free_bytes") or capability.get("disk_bytes", 0)),
        labels=row["labels"],
        unschedulable=explain_unschedulable(row),
    )


class HostState(Enum):
    """Whether a host is given runs, and if not, why: the value says so for users, after the host's name."""

    READY = ""
    UNREACHABLE = "is unreachable"
    LEAVING = "is leaving"
    NOT_READY = "is not ready"


def determine_host_state(row: Mapping[str, Any]) -> HostState:
    """Return the state of a host from its agent's row with `quiet`."""
    if row["session_id"] is None or row["disconnect_time"] is not None or row["quiet"]:
        return HostState.UNREACHABLE
    if row["leaving"]:
        return HostState.LEAVING
    return HostState.READY if row["ready"] else HostState.NOT_READY


def explain_unschedulable(row: Mapping[str, Any]) -> str:
    """Return why an agent is given no work, for users; empty when it can be."""
    state = determine_host_state(row)
    if state is HostState.NOT_READY and row["readiness_reason"]:
        return f"{state.value}: {row['readiness_reason']}"
    return state.value


@statement
async def record_explanations(conn: asyncpg.Connection, explanations: Mapping[str, str]) -> None:
    """Store why each waiting run waits. Runs that another transaction has locked are left for the next round."""
    await conn.execute(
        """WITH said AS (SELECT * FROM unnest($1::text[], $2::text[]) AS s(id, reason)),
                locked AS (SELECT r.id, s.reason FROM runs r JOIN said s USING (id)
                           WHERE r.state = 'queued' AND r.reason <> s.reason
                           ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED)
           UPDATE runs r SET reason = locked.reason FROM locked WHERE r.id = locked.id""",
        list(explanations),
        list(explanations.values()),
    )

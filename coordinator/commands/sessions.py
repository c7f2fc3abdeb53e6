"""Sessions of agents: who may speak for an agent, batches of heartbeats, and what follows when the database changes.

A newcomer takes over the name of the session there is, and the instance that it replaces is refused from then on. The
exception: while the older session still sends heartbeats, another boot under its name is a clone and is refused itself.
A hello that was delayed until its instance had said a later one takes over nothing. A place that an agent lists in
`held` is renewed; a place that it should list and does not has ended there, and ends here (`leases.end_missing`).

A failover, or a copy of the database restored elsewhere, must not split a run: `recognise_database` detects either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.commands import leases as lease_commands
from coordinator.database.connections import Database
from coordinator.lifecycle import Ended, Outcome
from coordinator.store import agents, deployment, desired_state, leases, planning, runs
from coordinator.store.deployment import DatabaseIdentity
from coordinator.values import DesiredState, Heartbeat, Hello, LeaseRecord
from relay.errors import DeploymentForeign, IdentityInUse, LeaseLost, SessionReplaced
from relay.logs import get_logger
from relay.timing import LeaseTiming

_log = get_logger(__name__)

ALIVE_HEARTBEATS = 2  #: a session counts as alive for so many heartbeat intervals after its last heartbeat


@dataclass(frozen=True, slots=True)
class AdmittedSession:
    """A session that was admitted."""

    session_id: UUID
    deployment_id: UUID


async def open_session(db: Database, hello: Hello, timing: LeaseTiming) -> AdmittedSession:
    """Give the agent a new session; from then on its older session renews nothing. What it holds follows as a
    heartbeat.
    """
    async with db.transaction() as conn:
        deployment_id = await deployment.read_deployment_id(conn)
        if hello.deployment_id not in ("", str(deployment_id)):
            raise DeploymentForeign(f"this is deployment {deployment_id}", deployment=str(deployment_id))
        row = await agents.ensure(conn, hello)
        retired = check_admission(row, hello, ALIVE_HEARTBEATS * timing.heartbeat)
        session_id = await agents.begin_session(conn, hello, retired)
        await agents.announce(conn, [hello.agent])
        await planning.wake(conn)
        return AdmittedSession(session_id, deployment_id)


def check_admission(row: Mapping[str, Any], hello: Hello, beats_within: float) -> list[str]:
    """Check that the newcomer may have the name; return the instances that are refused from then on.

    `row` is the agent's row with `heartbeat_age`, the time since its last heartbeat. SessionReplaced or IdentityInUse
    otherwise.
    """
    retired: list[str] = list(row["retired_instances"])
    if hello.instance_id in retired:
        raise SessionReplaced(f"another process has taken over as {hello.agent}")
    if row["instance_id"] == hello.instance_id and 0 < hello.dial <= row["dial"]:
        raise SessionReplaced(f"a later hello of {hello.agent} has overtaken this one")
    beats = row["heartbeat_age"] is not None and row["heartbeat_age"].total_seconds() < beats_within
    if row["boot_id"] != hello.boot_id and row["session_id"] is not None and beats:
        raise IdentityInUse(f"another host beats as {hello.agent}; give this one a name of its own")
    if row["instance_id"] != hello.instance_id:
        retired.append(row["instance_id"])
    return retired


async def close_session(db: Database, agent: str, session_id: UUID) -> None:
    """Record that the stream is over. The leases continue, and lapse if the agent does not come back."""
    async with db.transaction() as conn:
        await agents.end_session(conn, agent, session_id)


async def record_heartbeats(db: Database, heartbeats: Sequence[Heartbeat], ttl: float) -> dict[str, DesiredState]:
    """Record a batch of heartbeats, and return the desired state of these agents, read afterwards."""
    async with db.transaction() as conn:
        held = [(pulse.agent, pulse.session_id, item) for pulse in heartbeats for item in pulse.held]
        lapsed = await leases.renew(conn, held, ttl) if held else []
        if await agents.record_heartbeats(conn, heartbeats):
            await planning.wake(conn)
        missing = await leases.find_missing(conn, [pulse.agent for pulse in heartbeats])
        if not lapsed and not missing:
            return await desired_state.read(conn, [pulse.agent for pulse in heartbeats])
    for lease_id in lapsed:
        await lease_commands.renew_lapsed(db, lease_id)
    for lease_id in missing:
        await lease_commands.end_missing(db, lease_id)
    return await read_desired_state(db, [pulse.agent for pulse in heartbeats])


async def read_desired_state(db: Database, names: Sequence[str]) -> dict[str, DesiredState]:
    """Return the current desired state of agents."""
    async with db.connection() as conn:
        return await desired_state.read(conn, names)


async def read_lease_records(db: Database, hello: Hello) -> list[LeaseRecord]:
    """Return what is stored of the leases that the hello names."""
    async with db.connection() as conn:
        return await desired_state.read_lease_records(conn, hello.agent, [held.lease_id for held in hello.held])


async def end_all_sessions(conn: asyncpg.Connection) -> None:
    """End every session: the streams close, and agents say hello again."""
    await agents.announce(conn, await agents.end_sessions(conn))


async def recognise_database(db: Database, ttl: float) -> None:
    """Compare the database with the remembered one, and act on a change once.

    Another timeline (a promotion, which may have lost the last commits): sessions end, and places get a full TTL.
    Another system identifier or oid (a restored copy, of any age): sessions and all leases end. In both cases no `stop`
    run is granted for one TTL.
    """
    async with db.transaction() as conn:
        found, known = await deployment.read_identity(conn), await deployment.lock_remembered_identity(conn)
        if found == known:
            return
        if known is not None:
            await deployment.extend_places(conn, ttl)
            await end_all_sessions(conn)
            await deployment.withhold_stop_runs(conn, ttl)
        if known is None or not _is_restored_copy(found, known):
            await deployment.remember_identity(conn, found)
            if known is not None:
                _log.warning("the database failed over", timeline=found.timeline, before=known.timeline)
            return
    _log.warning("the database is a copy, all leases end", identity=found, before=known)
    async with db.connection() as conn:
        lease_ids = await deployment.list_unended_leases(conn)
    for lease_id in lease_ids:
        await _end_restored(db, lease_id)
    async with db.transaction() as conn:
        await deployment.remember_identity(conn, found)  # last, so that what a crash leaves undone is done by the next


def _is_restored_copy(found: DatabaseIdentity, known: DatabaseIdentity) -> bool:
    return (found.system, found.oid) != (known.system, known.oid)


async def _end_restored(db: Database, lease_id: UUID) -> None:
    async with db.transaction() as conn:
        try:
            run = await runs.lock_by_lease(conn, lease_id)
        except LeaseLost:
            return
        await runs.apply(conn, run, Ended(Outcome.FAULTED, reason="the database was restored from a copy"))

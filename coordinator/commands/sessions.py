"""Who may speak for an agent, and what it says: hello, and heartbeats by the batch.

A newcomer of a name wins over the session there is, and the instance it replaces is refused from then on; except that,
while the older session beats, another boot under its name is a clone and is refused itself. A hello that was under way
for so long that its instance has said a later one takes nothing from that. What an agent lists in
`held` is renewed; what it should list and does not has ended there, and ends here (`leases.miss`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.commands import leases as lease_commands
from coordinator.database.connections import Database
from coordinator.store import agents, deployment, desired_state, leases, planning
from coordinator.values import Hello, LeaseRecord, Pulse, Wish
from relay.errors import DeploymentForeign, IdentityInUse, SessionReplaced
from relay.timing import LeaseTiming

BEATS_WITHIN = 2  #: heartbeats: for so long after its last one a session still beats


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that was let in."""

    session_id: UUID
    deployment_id: UUID


async def open_session(db: Database, hello: Hello, timing: LeaseTiming) -> Opened:
    """Gives the agent a new session; from then on the one it had renews nothing. What it holds comes with `beat`."""
    async with db.transaction() as conn:
        deployment_id = await deployment.deployment_id(conn)
        if hello.deployment_id not in ("", str(deployment_id)):
            raise DeploymentForeign(f"this is deployment {deployment_id}", deployment=str(deployment_id))
        row = await agents.ensure(conn, hello)
        retired = admit(row, hello, BEATS_WITHIN * timing.heartbeat)
        session_id = await agents.begin_session(conn, hello, retired)
        await agents.announce(conn, [hello.agent])
        await planning.wake(conn)
        return Opened(session_id, deployment_id)


def admit(row: Mapping[str, Any], hello: Hello, beats_within: float) -> list[str]:
    """Whether the newcomer may have the name; returns the instances that are refused from then on.

    `row` is the agent's row with `silence`, the time since it was last heard.
    """
    retired: list[str] = list(row["retired_instances"])
    if hello.instance_id in retired:
        raise SessionReplaced(f"another process has taken over as {hello.agent}")
    if row["instance_id"] == hello.instance_id and 0 < hello.dial <= row["dial"]:
        raise SessionReplaced(f"a later hello of {hello.agent} has overtaken this one")
    beats = row["silence"] is not None and row["silence"].total_seconds() < beats_within
    if row["boot_id"] != hello.boot_id and row["session_id"] is not None and beats:
        raise IdentityInUse(f"another host beats as {hello.agent}; give this one a name of its own")
    if row["instance_id"] != hello.instance_id:
        retired.append(row["instance_id"])
    return retired


async def close_session(db: Database, agent: str, session_id: UUID) -> None:
    """Notes that the stream is over; the leases go on, and lapse if nobody comes back."""
    async with db.transaction() as conn:
        await agents.end_session(conn, agent, session_id)


async def beat(db: Database, pulses: Sequence[Pulse], ttl: float) -> dict[str, Wish]:
    """Takes a batch of heartbeats, and reads afterwards what is wished of these agents."""
    async with db.transaction() as conn:
        held = [(pulse.agent, pulse.session_id, item) for pulse in pulses for item in pulse.held]
        lapsed = await leases.renew(conn, held, ttl) if held else []
        if await agents.beat(conn, pulses):
            await planning.wake(conn)
        missing = await leases.missing(conn, [pulse.agent for pulse in pulses])
        if not lapsed and not missing:
            return await desired_state.read(conn, [pulse.agent for pulse in pulses])
    for lease_id in lapsed:
        await lease_commands.unlapse(db, lease_id)
    for lease_id in missing:
        await lease_commands.miss(db, lease_id)
    return await wished(db, [pulse.agent for pulse in pulses])


async def wished(db: Database, names: Sequence[str]) -> dict[str, Wish]:
    """What is wished of agents now."""
    async with db.connection() as conn:
        return await desired_state.read(conn, names)


async def records(db: Database, hello: Hello) -> list[LeaseRecord]:
    """What is stored of the leases that the hello names."""
    async with db.connection() as conn:
        return await desired_state.records(conn, hello.agent, [held.lease_id for held in hello.held])


async def end_all(conn: asyncpg.Connection) -> None:
    """Ends every session: their streams close, and agents say hello again."""
    await agents.announce(conn, await agents.end_sessions(conn))

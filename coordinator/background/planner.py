"""Planning: grants queued runs, and releases runs whose awaited run is over.

Both are woken by NOTIFY, planning also by the time that a run waits for, and both by a slow tick in case a notification
was lost.
"""

from __future__ import annotations

from functools import partial
from typing import Never

import asyncpg

from coordinator import scheduling
from coordinator.background.leadership import DEPENDENCIES, PLANNER, run_as_leader, wait_for
from coordinator.commands import leases, run_dependencies
from coordinator.commands.initial_weights import ManifestReader
from coordinator.database.connections import Database
from coordinator.store import planning
from coordinator.store.deployment import check_leadership
from relay.logs import get_logger
from relay.timing import LeaseTiming
from storage.threads import in_thread

TICK = 5.0  #: seconds
RELEASE_TICK = 30.0  #: seconds
_SOON = 0.01
_RETRY = 0.1  #: when the world had changed under the plan; the change wakes us too
_log = get_logger(__name__)


async def plan_forever(db: Database, timing: LeaseTiming) -> Never:
    """Plan for as long as this process runs, while it leads."""
    await run_as_leader(db, PLANNER, partial(_plan_as_leader, db, timing))


async def _plan_as_leader(db: Database, timing: LeaseTiming, conn: asyncpg.Connection) -> Never:
    async with db.notifications.subscribe("relay_queue") as woken:
        while True:
            woken.clear()
            await check_leadership(conn)
            wait = await plan_once(db, timing)
            await wait_for(woken, wait)


async def plan_once(db: Database, timing: LeaseTiming) -> float:
    """Grant what can be granted and record why other runs wait; return the seconds until the next round is due."""
    async with db.connection() as conn:
        seen = await planning.read_snapshot(conn, timing.ttl)
    decisions = await in_thread(scheduling.plan, seen.queue, seen.fleet, seen.now)  # heartbeats must not wait for it
    made = [await leases.grant(db, grant, timing.ttl) for grant in decisions.grants]
    explanations = dict(decisions.explanations)
    for run, until in seen.withheld.items():
        explanations[run] = f"not before {until:%H:%M:%S} UTC: after a failover older holders may still train"
    if explanations:
        async with db.transaction() as conn:
            await planning.record_explanations(conn, explanations)
    if None in made:
        return _RETRY
    due = [claim.eligible_time for claim in seen.queue if claim.eligible_time] + list(seen.withheld.values())
    waits = [(time - seen.now).total_seconds() + _SOON for time in due if time > seen.now]
    return min([TICK, *waits])


async def release_forever(db: Database, blobs: ManifestReader) -> Never:
    """Release runs that wait for another run, for as long as this process runs, while it leads."""
    await run_as_leader(db, DEPENDENCIES, partial(_release_as_leader, db, blobs))


async def _release_as_leader(db: Database, blobs: ManifestReader, conn: asyncpg.Connection) -> Never:
    async with db.notifications.subscribe("relay_queue") as woken:
        while True:
            woken.clear()
            await check_leadership(conn)
            await run_dependencies.release_dependents(db, blobs)
            await wait_for(woken, RELEASE_TICK)

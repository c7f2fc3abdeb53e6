"""Planning: woken by NOTIFY, by the time a run waits for, and by a slow tick in case a word was lost."""

from __future__ import annotations

import logging
from functools import partial
from typing import Never

import asyncpg

from coordinator import scheduling
from coordinator.background.leadership import PLANNER, lead, set_within
from coordinator.commands import leases
from coordinator.database.connections import Database
from coordinator.store import planning
from coordinator.store.leadership import still_leads
from relay.timing import LeaseTiming
from storage.threads import in_thread

TICK = 5.0  #: seconds
_SOON = 0.01
_RETRY = 0.1  #: when the world had changed under the plan; the change wakes us too
_log = logging.getLogger(__name__)


async def run(db: Database, timing: LeaseTiming) -> Never:
    """Plans for ever, while leader."""
    await lead(db, PLANNER, partial(_plan_for_ever, db, timing))


async def _plan_for_ever(db: Database, timing: LeaseTiming, conn: asyncpg.Connection) -> Never:
    async with db.notifications.subscribe("relay_queue") as woken:
        while True:
            woken.clear()
            await still_leads(conn)
            wait = await plan_once(db, timing)
            await set_within(woken, wait)


async def plan_once(db: Database, timing: LeaseTiming) -> float:
    """One round: grants what can be granted, says why the rest waits; returns seconds until the next is due."""
    async with db.connection() as conn:
        seen = await planning.snapshot(conn, timing.ttl)
    decisions = await in_thread(scheduling.plan, seen.queue, seen.fleet, seen.now)  # heartbeats must not wait for it
    made = [await leases.grant(db, grant, timing.ttl) for grant in decisions.grants]
    explanations = dict(decisions.explanations)
    for run, until in seen.withheld.items():
        explanations[run] = f"not before {until:%H:%M:%S} UTC: after a failover older holders may still train"
    if explanations:
        async with db.transaction() as conn:
            await planning.explain(conn, explanations)
    if None in made:
        return _RETRY
    due = [claim.eligible_time for claim in seen.queue if claim.eligible_time] + list(seen.withheld.values())
    waits = [(time - seen.now).total_seconds() + _SOON for time in due if time > seen.now]
    return min([TICK, *waits])

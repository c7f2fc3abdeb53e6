"""The reaper: lets leases lapse that their agents no longer renew, by the database's clock, except in an outage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Never

import asyncpg

from coordinator import outage
from coordinator.background.leadership import REAPER, run_as_leader
from coordinator.commands import leases as lease_commands
from coordinator.commands import sessions as session_commands
from coordinator.database.connections import Database
from coordinator.store import deployment, leases
from coordinator.store.deployment import check_leadership
from relay.logs import bind, get_logger
from relay.timing import LeaseTiming

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReaperLook:
    """When this process last looked, by both clocks."""

    database: datetime
    monotonic: float


async def reap_forever(db: Database, timing: LeaseTiming, *, monotonic: Callable[[], float] = time.monotonic) -> Never:
    """Reap for as long as this process runs, while it leads."""
    await run_as_leader(db, REAPER, partial(_reap_as_leader, db, timing, monotonic))


async def _reap_as_leader(
    db: Database, timing: LeaseTiming, monotonic: Callable[[], float], conn: asyncpg.Connection
) -> Never:
    looked: ReaperLook | None = None
    while True:
        await check_leadership(conn)
        looked = await reap_once(db, timing, looked, monotonic=monotonic)
        await asyncio.sleep(min(1.0, timing.heartbeat / 2))


async def reap_once(
    db: Database, timing: LeaseTiming, last: ReaperLook | None, *, monotonic: Callable[[], float] = time.monotonic
) -> ReaperLook:
    """Run one tick: recognise the database, detect an outage, and let expired leases lapse."""
    await session_commands.recognise_database(db, timing.ttl)
    async with db.transaction() as conn:
        clock = await deployment.lock_clock(conn)
        looked = ReaperLook(clock.now, monotonic())
        seen = await _read_tick(conn, timing, clock, looked, last)
        if why := outage.find_outage(seen, heartbeat=timing.heartbeat):
            await deployment.clamp_future_times(conn, timing.ttl)
        await deployment.record_tick(conn, clock.now, timing.ttl if why else None)
        suspended = bool(why) or (clock.lapses_after is not None and clock.lapses_after > clock.now)
        run_out = [] if suspended else await leases.find_expired(conn, clock.now)
    if why:
        _log.warning("nothing lapses for a while", seconds=timing.ttl, reason=why)
    for lease_id in run_out:
        with bind(lease=lease_id):
            if await lease_commands.lapse(db, lease_id, looked.database):
                _log.info("lease lapsed")
    return looked


async def _read_tick(
    conn: asyncpg.Connection,
    timing: LeaseTiming,
    clock: deployment.ReaperClock,
    now: ReaperLook,
    last: ReaperLook | None,
) -> outage.ReaperTick:
    def since(earlier: datetime | None) -> float | None:
        return None if earlier is None else (clock.now - earlier).total_seconds()

    graced = since(clock.lapses_after)
    return outage.ReaperTick(
        gap=since(clock.tick),
        clock=since(last.database) if last else None,
        elapsed=now.monotonic - last.monotonic if last else None,
        heartbeat_ages=await deployment.read_heartbeat_ages(conn, clock.now, timing.ttl + 2 * timing.heartbeat),
        graced=None if graced is None else graced + timing.ttl,
    )

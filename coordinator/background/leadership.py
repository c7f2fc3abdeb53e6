"""Leadership: one replica at a time does the work, by an advisory lock on a connection of its own.

The lock is released when its connection ends. Leadership only saves work: everything that a leader does is guarded by
itself, so two leaders at the same moment do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Never

import asyncpg

from coordinator.database.connections import Database, DatabaseAway
from coordinator.store import deployment
from relay.logs import get_logger

PLANNER, REAPER, COLLECTOR, DEPENDENCIES = 0x52454C41, 0x52454C42, 0x52454C43, 0x52454C44
_RETRY_SECONDS = 1.0  #: seconds before another try
_log = get_logger(__name__)


async def run_as_leader(db: Database, key: int, work: Callable[[asyncpg.Connection], Awaitable[Never]]) -> Never:
    """Wait to become leader, work as leader, and start again after the database was out of reach."""
    while True:
        try:
            async with db.dedicated() as conn:
                # Tried now and then: a statement that waits for days would keep Postgres from clearing away old rows.
                while True:
                    if await deployment.try_lead(conn, key):
                        await work(conn)
                    await asyncio.sleep(_RETRY_SECONDS)
        except DatabaseAway as away:
            _log.warning("leadership lost", key=f"{key:x}", reason=away)
        await asyncio.sleep(_RETRY_SECONDS)


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, at most so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return

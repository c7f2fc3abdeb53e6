"""Following: looks for runs that wait for another one, whenever one has ended, and now and then in case a word was
lost.
"""

from __future__ import annotations

from functools import partial
from typing import Never

import asyncpg

from coordinator.background.leadership import FOLLOWER, lead, set_within
from coordinator.commands import run_dependencies
from coordinator.commands.initial_weights import Blobs
from coordinator.database.connections import Database
from coordinator.store.leadership import still_leads

TICK = 30.0  #: seconds


async def run(db: Database, blobs: Blobs) -> Never:
    """Follows for ever, while leader."""
    await lead(db, FOLLOWER, partial(_follow_for_ever, db, blobs))


async def _follow_for_ever(db: Database, blobs: Blobs, conn: asyncpg.Connection) -> Never:
    async with db.notifications.subscribe("relay_queue") as woken:
        while True:
            woken.clear()
            await still_leads(conn)
            await run_dependencies.release(db, blobs)
            await set_within(woken, TICK)

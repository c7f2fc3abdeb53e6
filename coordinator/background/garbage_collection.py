"""Collecting: what time and rules let go, and what nothing names any more in the coordinator's own store.

One replica at a time, which only saves work. Nothing is held up by it: uploads and downloads go on, and what they touch
stays (`artifacts.collecting`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Never

import asyncpg

from coordinator.artifacts.base import Artifacts, Swept
from coordinator.artifacts.garbage_collection import Collector, Pace
from coordinator.background.leadership import COLLECTOR, lead
from coordinator.commands import retention
from coordinator.database.connections import Database
from coordinator.store import artifacts as store
from coordinator.store import deployment
from coordinator.store.leadership import still_leads
from storage.base import StoreUnavailable
from storage.threads import in_thread

_SIGN = 5.0  #: seconds between two signs of life of a leader
_log = logging.getLogger(__name__)


async def run(db: Database, artifacts: Artifacts, pace: Pace) -> Never:
    """Collects for ever, while leader."""
    await lead(db, COLLECTOR, partial(_collect_for_ever, db, Collector(artifacts), pace))


async def _collect_for_ever(db: Database, collector: Collector, pace: Pace, conn: asyncpg.Connection) -> Never:
    while True:
        collecting = asyncio.create_task(_round(db, collector, pace))
        try:
            while not collecting.done():
                await still_leads(conn)
                await asyncio.wait([collecting], timeout=_SIGN)
            await collecting
        finally:
            collecting.cancel()


async def _round(db: Database, collector: Collector, pace: Pace) -> None:
    """Once, and then until the next is due."""
    began = time.monotonic()
    try:
        await retention.tidy_aged(db)
        await collect_once(db, collector, pace.grace)
    except (OSError, StoreUnavailable) as error:  # the store's folder or bucket; the next round tries again
        _log.error("artifacts not collected: %s", error)
    await asyncio.sleep(max(0.0, began + pace.every - time.monotonic()))


async def collect_once(db: Database, collector: Collector, grace: float) -> Swept | None:
    """Sweeps what nothing names; None when the store belongs to another deployment."""
    before = time.time() - grace  # of before the names are read: what is named later was touched later
    async with db.connection() as conn:
        deployment_id = str(await deployment.deployment_id(conn))
        named = await store.named(conn)
    if not await in_thread(collector.artifacts.claim, deployment_id):
        _log.error("artifacts not collected: the store is another deployment's, whose database names what is in it")
        return None
    began = time.monotonic()
    swept = await in_thread(collector.collect, named.manifests, named.blobs, before)
    _log.info(
        "artifacts swept=%d bytes=%d left=%d manifests=%d seconds=%.1f",
        *(swept.blobs, swept.size, swept.left, len(named.manifests), time.monotonic() - began),
    )
    return swept

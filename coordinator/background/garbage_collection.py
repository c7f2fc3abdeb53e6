"""Garbage collection: schedules aged checkpoints for deletion, and deletes blobs that nothing references.

One replica at a time does it, which only saves work. Uploads and downloads continue in the meantime, and what they
touch is kept (`coordinator.artifacts.garbage_collection`).
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Never

import asyncpg

from coordinator.artifacts.base import Artifacts, SweepResult
from coordinator.artifacts.garbage_collection import CollectionSchedule, Collector
from coordinator.background.leadership import COLLECTOR, run_as_leader
from coordinator.commands import retention
from coordinator.database.connections import Database
from coordinator.store import deployment
from coordinator.store import retention as store
from coordinator.store.deployment import check_leadership
from relay.logs import get_logger
from storage.base import StoreUnavailable
from storage.threads import in_thread

_CHECK_SECONDS = 5.0  #: seconds between two signs of life of a leader
_log = get_logger(__name__)


async def collect_forever(db: Database, artifacts: Artifacts, pace: CollectionSchedule) -> Never:
    """Collect for as long as this process runs, while it leads."""
    await run_as_leader(db, COLLECTOR, partial(_collect_as_leader, db, Collector(artifacts), pace))


async def _collect_as_leader(
    db: Database, collector: Collector, pace: CollectionSchedule, conn: asyncpg.Connection
) -> Never:
    while True:
        collecting = asyncio.create_task(_run_round(db, collector, pace))
        try:
            while not collecting.done():
                await check_leadership(conn)
                await asyncio.wait([collecting], timeout=_CHECK_SECONDS)
            await collecting
        finally:
            collecting.cancel()


async def _run_round(db: Database, collector: Collector, pace: CollectionSchedule) -> None:
    """Collect once, then sleep until the next round is due."""
    began = time.monotonic()
    try:
        await retention.apply_max_ages(db)
        await collect_once(db, collector, pace.grace)
    except (OSError, StoreUnavailable) as error:  # the store's folder or bucket; the next round tries again
        _log.error("artifacts not collected", reason=error)
    await asyncio.sleep(max(0.0, began + pace.every - time.monotonic()))


async def collect_once(db: Database, collector: Collector, grace: float) -> SweepResult | None:
    """Delete blobs that nothing references; return None when the store belongs to another deployment."""
    before = time.time() - grace  # of before the names are read: what is named later was touched later
    async with db.connection() as conn:
        deployment_id = str(await deployment.read_deployment_id(conn))
        named = await store.read_referenced_blobs(conn)
    if not await in_thread(collector.artifacts.claim, deployment_id):
        _log.error(
            "artifacts not collected",
            reason="the store is another deployment's, whose database names what is in it",
        )
        return None
    began = time.monotonic()
    swept = await in_thread(collector.collect, named.manifests, named.blobs, before)
    _log.info(
        "artifacts swept",
        blobs=swept.blobs,
        bytes=swept.size,
        left=swept.left,
        manifests=len(named.manifests),
        seconds=round(time.monotonic() - began, 1),
    )
    return swept

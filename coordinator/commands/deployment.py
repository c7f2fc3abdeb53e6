"""The database as a thing that can be swapped: a failover, or a copy restored elsewhere, must not split a run."""

from __future__ import annotations

import logging
from uuid import UUID

from coordinator.commands.sessions import end_all
from coordinator.database.connections import Database
from coordinator.lifecycle import Ended, Outcome
from coordinator.store import deployment, runs
from coordinator.store.deployment import Identity
from relay.errors import LeaseLost

_log = logging.getLogger(__name__)


async def recognise(db: Database, ttl: float) -> None:
    """Compares the database with the one it was, and draws the consequences once.

    Another timeline (a promotion, which may have lost the last commits): sessions end, places get a full TTL. Another
    cluster or oid (a restored copy, of any age): sessions and all leases end. Either way no `stop` run is granted for
    one TTL.
    """
    async with db.transaction() as conn:
        found, known = await deployment.identity(conn), await deployment.remembered(conn)
        if found == known:
            return
        if known is not None:
            await deployment.extend_places(conn, ttl)
            await end_all(conn)
            await deployment.withhold_stop_runs(conn, ttl)
        if known is None or not _is_copy(found, known):
            await deployment.remember(conn, found)
            if known is not None:
                _log.warning("the database failed over: timeline %s → %s", known.timeline, found.timeline)
            return
    _log.warning("the database is a copy: %s → %s; all leases end", known, found)
    async with db.connection() as conn:
        leases = await deployment.unended_leases(conn)
    for lease_id in leases:
        await _end(db, lease_id)
    async with db.transaction() as conn:
        await deployment.remember(conn, found)  # last, so that what a crash leaves undone is done by the next


def _is_copy(found: Identity, known: Identity) -> bool:
    return (found.system, found.oid) != (known.system, known.oid)


async def _end(db: Database, lease_id: UUID) -> None:
    async with db.transaction() as conn:
        try:
            run = await runs.lock_of(conn, lease_id)
        except LeaseLost:
            return
        await runs.apply(conn, run, Ended(Outcome.FAULTED, reason="the database was restored from a copy"))

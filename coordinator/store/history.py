"""A run's history: events numbered per run without gaps, so that a watcher can continue after any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.database.connections import make_storable_text
from coordinator.store.statement import statement

CHANNEL = "relay_runs"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event as read."""

    sequence: int
    time: datetime
    kind: str  #: RunEvent.Kind of the contract, in lower case
    lease_id: UUID | None
    attempt: int
    message: str
    level: str
    details: dict[str, Any] = field(default_factory=dict)
    state: str = ""


@statement
async def record(
    conn: asyncpg.Connection,
    run_id: str,
    kind: str,
    text: str,
    *,
    lease_id: UUID | None = None,
    attempt: int = 0,
    level: str = "info",
    details: dict[str, Any] | None = None,
    state: str,
) -> int:
    """Append one event and return its number. The run's row stays locked until the transaction ends.

    Watchers are notified at the commit, once however many events a transaction appends.
    """
    sequence: int = await conn.fetchval(
        """
        WITH numbered AS (
            UPDATE runs SET event_sequence = event_sequence + 1, update_time = clock_timestamp()
            WHERE id = $1 RETURNING event_sequence
        ), told AS (SELECT pg_notify($9, $1))
        INSERT INTO run_events (run_id, sequence, kind, message, lease_id, attempt, level, details, state)
        SELECT $1, event_sequence, $2, $3, $4, $5, $6, $7, $8 FROM numbered, told
        RETURNING sequence
        """,
        run_id,
        kind,
        make_storable_text(text),
        lease_id,
        attempt,
        level,
        details or {},
        state,
        CHANNEL,
    )
    return sequence


@statement
async def announce(conn: asyncpg.Connection, run_ids: Sequence[str]) -> None:
    """Notify the watchers of these runs, at the commit, that progress or logs have changed."""
    await conn.execute("SELECT pg_notify($1, run_id) FROM unnest($2::text[]) AS run_id", CHANNEL, list(run_ids))


async def read(conn: asyncpg.Connection, run_id: str, after: int, limit: int) -> list[HistoryEntry]:
    """Return the events after a number, oldest first."""
    rows = await conn.fetch(
        """
        SELECT sequence, time, kind, lease_id, attempt, message, level, details, state
        FROM run_events WHERE run_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3
        """,
        run_id,
        after,
        limit,
    )
    return [HistoryEntry(*row) for row in rows]

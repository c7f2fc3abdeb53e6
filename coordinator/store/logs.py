"""What trainers and agents printed. Chunks of a run are numbered in the order of their commits: its row was locked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

_SELECT = """SELECT c.id, l.attempt, c.node, c.source, c.offset_bytes, c.data, c.time
             FROM log_chunks c JOIN leases l ON l.id = c.lease_id
             WHERE l.run_id = $1 AND ($2 = 0 OR l.attempt = $2) AND ($3::int IS NULL OR c.node = $3)
               AND ($4::text[] = '{}' OR c.source = ANY($4))
               AND ($5::interval IS NULL OR c.time >= clock_timestamp() - $5)"""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one log."""

    id: int
    attempt: int
    node: int
    source: str
    offset: int
    data: bytes
    time: datetime


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which logs; attempt 0, node None and no sources mean all."""

    run_id: str
    attempt: int = 0
    node: int | None = None
    sources: Sequence[str] = ()
    since: timedelta | None = None

    def arguments(self) -> tuple[object, ...]:
        """As `_SELECT` takes them."""
        return self.run_id, self.attempt, self.node, list(self.sources), self.since


async def read(conn: asyncpg.Connection, which: LogFilter, after: int, limit: int) -> list[Chunk]:
    """Chunks after an id, oldest first."""
    query = f"{_SELECT} AND c.id > $6 ORDER BY c.id LIMIT $7"
    return [Chunk(*row) for row in await conn.fetch(query, *which.arguments(), after, limit)]


async def read_back(conn: asyncpg.Connection, which: LogFilter, before: int, limit: int) -> list[Chunk]:
    """Chunks before an id, newest first."""
    query = f"{_SELECT} AND c.id < $6 ORDER BY c.id DESC LIMIT $7"
    return [Chunk(*row) for row in await conn.fetch(query, *which.arguments(), before, limit)]

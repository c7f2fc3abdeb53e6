"""The curve: a run's points as they were stored, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one metric, made by one lease. Points after `kept_until` are off the curve; None: all count."""

    id: int
    metric: str
    lease_id: UUID
    attempt: int
    kept_until: int | None
    steps: list[int]
    values: list[float]
    times: list[float]


async def read(
    conn: asyncpg.Connection, run_id: str, metrics: Sequence[str], after: tuple[str, int], limit: int
) -> list[Chunk]:
    """Chunks after (metric, id), in that order; of all metrics when none is named."""
    rows = await conn.fetch(
        """SELECT c.id, c.metric, c.lease_id, l.attempt, l.kept_until_step, c.steps, c.points, c.times
           FROM metric_chunks c JOIN leases l ON l.id = c.lease_id
           WHERE c.run_id = $1 AND (c.metric, c.id) > ($2, $3) AND ($4::text[] = '{}' OR c.metric = ANY($4))
           ORDER BY c.metric, c.id LIMIT $5""",
        run_id,
        *after,
        list(metrics),
        limit,
    )
    return [Chunk(*row) for row in rows]

"""How far a run is, as its watchers look at it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from relay.errors import RunUnknown


@dataclass(frozen=True, slots=True)
class Look:
    """A run's progress, and the number of its newest history entry."""

    state: str
    event_sequence: int
    step: int
    total: int
    epoch: float | None
    metrics: dict[str, float | str]
    progress_time: datetime | None


async def look(conn: asyncpg.Connection, run_id: str) -> Look:
    """As it is now; RunUnknown."""
    row = await conn.fetchrow(
        "SELECT state, event_sequence, step, total, epoch, metrics, progress_time FROM runs WHERE id = $1", run_id
    )
    if row is None:
        raise RunUnknown(f"there is no run {run_id}", run=run_id)
    return Look(*row)

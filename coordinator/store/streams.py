"""What is streamed out of a run: its progress, its curve, its samples and its logs. Nothing here locks or writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from relay.errors import RunUnknown


@dataclass(frozen=True, slots=True)
class RunProgress:
    """A run's progress, and the number of its newest history event."""

    state: str
    event_sequence: int
    step: int
    total: int
    epoch: float | None
    metrics: dict[str, float | str]
    progress_time: datetime | None


async def read_progress(conn: asyncpg.Connection, run_id: str) -> RunProgress:
    """Return the current progress of a run; RunUnknown."""
    row = await conn.fetchrow(
        "SELECT state, event_sequence, step, total, epoch, metrics, progress_time FROM runs WHERE id = $1", run_id
    )
    if row is None:
        raise RunUnknown(f"there is no run {run_id}", run=run_id)
    return RunProgress(*row)


@dataclass(frozen=True, slots=True)
class MetricSlice:
    """Consecutive points of one metric from one lease. Points after `kept_until` are superseded; None: none are."""

    id: int
    metric: str
    lease_id: UUID
    attempt: int
    kept_until: int | None
    steps: list[int]
    values: list[float]
    times: list[float]


async def read_metrics(
    conn: asyncpg.Connection, run_id: str, metrics: Sequence[str], after: tuple[str, int], limit: int
) -> list[MetricSlice]:
    """Return chunks after (metric, id), in that order; of all metrics when none is named."""
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
    return [MetricSlice(*row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFilter:
    """Selects samples of a run; the steps are inclusive."""

    run_id: str
    kinds: tuple[str, ...]
    from_step: int = 0
    to_step: int = 2**62
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample as stored, with the attempt that made it."""

    id: int
    lease_id: UUID
    attempt: int
    step: int
    kind: str
    prompt: str
    completion: str
    rewards: Mapping[str, Any]
    time: float
    superseded: bool


_MATCHING_SAMPLES = """FROM samples s JOIN leases l ON l.id = s.lease_id
           WHERE s.run_id = $1 AND s.kind = ANY($2) AND s.step BETWEEN $3 AND $4
             AND ($5 OR l.kept_until_step IS NULL OR s.step <= l.kept_until_step)"""


async def read_samples(conn: asyncpg.Connection, which: SampleFilter, after: int, limit: int) -> list[StoredSample]:
    """Return the samples after an id, in the order of arrival."""
    rows = await conn.fetch(
        f"""SELECT s.id, s.lease_id, l.attempt, s.step, s.kind, s.prompt, s.completion, s.rewards, s.time,
                   coalesce(s.step > l.kept_until_step, false)
            {_MATCHING_SAMPLES} AND s.id > $6 ORDER BY s.id LIMIT $7""",
        *_sample_arguments(which),
        after,
        limit,
    )
    return [StoredSample(*row) for row in rows]


async def first_of_last_steps(conn: asyncpg.Connection, which: SampleFilter, count: int) -> int:
    """Return the first of the newest `count` steps that have selected samples; 0 when there are fewer."""
    query = f"SELECT DISTINCT s.step {_MATCHING_SAMPLES} ORDER BY s.step DESC LIMIT $6"
    rows = await conn.fetch(query, *_sample_arguments(which), count)
    return rows[-1]["step"] if len(rows) == count else 0


def _sample_arguments(which: SampleFilter) -> tuple[Any, ...]:
    return which.run_id, list(which.kinds), which.from_step, which.to_step, which.superseded


_SELECT_LOGS = """SELECT c.id, l.attempt, c.node, c.source, c.offset_bytes, c.data, c.time
             FROM log_chunks c JOIN leases l ON l.id = c.lease_id
             WHERE l.run_id = $1 AND ($2 = 0 OR l.attempt = $2) AND ($3::int IS NULL OR c.node = $3)
               AND ($4::text[] = '{}' OR c.source = ANY($4))
               AND ($5::interval IS NULL OR c.time >= clock_timestamp() - $5)"""


@dataclass(frozen=True, slots=True)
class LogSlice:
    """A byte range of one log."""

    id: int
    attempt: int
    node: int
    source: str
    offset: int
    data: bytes
    time: datetime


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Selects logs; attempt 0, node None and no sources each select all."""

    run_id: str
    attempt: int = 0
    node: int | None = None
    sources: Sequence[str] = ()
    since: timedelta | None = None

    def arguments(self) -> tuple[object, ...]:
        """Return the parameters of the query."""
        return self.run_id, self.attempt, self.node, list(self.sources), self.since


async def read_logs(conn: asyncpg.Connection, which: LogFilter, after: int, limit: int) -> list[LogSlice]:
    """Return chunks after an id, oldest first. A run's chunks are numbered in the order of their commits."""
    query = f"{_SELECT_LOGS} AND c.id > $6 ORDER BY c.id LIMIT $7"
    return [LogSlice(*row) for row in await conn.fetch(query, *which.arguments(), after, limit)]


async def read_logs_backwards(conn: asyncpg.Connection, which: LogFilter, before: int, limit: int) -> list[LogSlice]:
    """Return chunks before an id, newest first."""
    query = f"{_SELECT_LOGS} AND c.id < $6 ORDER BY c.id DESC LIMIT $7"
    return [LogSlice(*row) for row in await conn.fetch(query, *which.arguments(), before, limit)]

"""The tables that sources write: fences and cursors, points, samples, logs, and the progress of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from coordinator.database.connections import make_storable_text
from coordinator.event_lines import MetricSeries, ReportedSample
from coordinator.store.statement import statement

SourceKey = tuple[UUID, int, str]  #: lease, node, source


@dataclass(slots=True)
class Writer:
    """A lease that may write, with what is known of its run."""

    lease_id: UUID
    run_id: str
    attempt: int
    run_state: str
    nodes: set[int]  #: nodes that it has places for
    pins: dict[str, str]
    metrics: set[str]
    started: bool  #: its first write has arrived
    resumed_step: int = 0  #: the step of the checkpoint that it resumed from


@dataclass(slots=True)
class ProgressUpdate:
    """What event lines add to a run's row."""

    step: int | None = None
    total: int | None = None
    epoch: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)


@statement
async def lock_writers(conn: asyncpg.Connection, lease_ids: Iterable[UUID], *, wait: bool) -> dict[UUID, Writer]:
    """Lock the runs of those leases that have not ended, in order of id, and the leases (S2); return the leases as
    writers.

    Without `wait`, leases whose rows another transaction has locked are left out.
    """
    rows = await conn.fetch(
        f"""SELECT l.id, l.run_id, l.attempt, l.start_time IS NOT NULL AS started, l.resumed_step, r.state,
                   ARRAY(SELECT node FROM places WHERE lease_id = l.id) AS nodes, r.pins,
                   ARRAY(SELECT jsonb_object_keys(r.metrics)) AS metrics
            FROM runs r JOIN leases l ON l.run_id = r.id
            WHERE l.id = ANY($1) AND l.end_time IS NULL
            ORDER BY r.id FOR NO KEY UPDATE OF r, l {"" if wait else "SKIP LOCKED"}""",
        list(set(lease_ids)),
    )
    return {row["id"]: _writer(row) for row in rows}


def _writer(row: Mapping[str, Any]) -> Writer:
    nodes, metrics = set(row["nodes"]), set(row["metrics"])
    started, resumed_step = row["started"], row["resumed_step"]
    return Writer(
        row["id"], row["run_id"], row["attempt"], row["state"], nodes, row["pins"], metrics, started, resumed_step
    )


@statement
async def find_unended(conn: asyncpg.Connection, lease_ids: Iterable[UUID]) -> set[UUID]:
    """Return those of the leases that have not ended, without a lock."""
    rows = await conn.fetch("SELECT id FROM leases WHERE id = ANY($1) AND end_time IS NULL", list(lease_ids))
    return {row["id"] for row in rows}


@statement
async def read_cursors(conn: asyncpg.Connection, lease_ids: Iterable[UUID]) -> dict[SourceKey, int]:
    """Return how far each source of these leases is stored. A cursor moves only while its run's row is locked."""
    rows = await conn.fetch(
        "SELECT lease_id, node, source, offset_bytes FROM cursors WHERE lease_id = ANY($1)", list(set(lease_ids))
    )
    return {(row["lease_id"], row["node"], row["source"]): row["offset_bytes"] for row in rows}


@statement
async def move_cursors(conn: asyncpg.Connection, moved: Mapping[SourceKey, tuple[int, int]]) -> None:
    """Move cursors to new offsets, and add to the numbers of dropped lines."""
    await conn.execute(
        """INSERT INTO cursors (lease_id, node, source, offset_bytes, dropped)
           SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::bigint[], $5::bigint[])
           ON CONFLICT (lease_id, node, source) DO UPDATE
           SET offset_bytes = excluded.offset_bytes, dropped = cursors.dropped + excluded.dropped""",
        *_columns(((*key, *values) for key, values in moved.items()), 5),
    )


@statement
async def add_points(conn: asyncpg.Connection, points: Sequence[tuple[Writer, Mapping[str, MetricSeries]]]) -> None:
    """Insert one chunk of points for each metric."""
    records = [
        (writer.run_id, writer.lease_id, metric, series.steps, series.values, series.times)
        for writer, metrics in points
        for metric, series in metrics.items()
    ]
    columns = ["run_id", "lease_id", "metric", "steps", "points", "times"]
    await conn.copy_records_to_table("metric_chunks", records=records, columns=columns)


@statement
async def find_evaluated(conn: asyncpg.Connection, run_id: str, lease_id: UUID, steps: Iterable[int]) -> set[int]:
    """Return those of the steps whose evaluation, on the run's curve, other leases have reported."""
    rows = await conn.fetch(
        """SELECT DISTINCT s.step FROM unnest($3::bigint[]) AS s(step)
           JOIN metric_chunks c ON s.step = ANY(c.steps) JOIN leases l ON l.id = c.lease_id
           WHERE c.run_id = $1 AND c.lease_id <> $2 AND s.step <= COALESCE(l.kept_until_step, s.step)
             AND c.metric IN (
               SELECT name FROM runs r, jsonb_object_keys(r.metrics) AS name
               WHERE r.id = $1 AND name LIKE 'eval\\_%')""",
        run_id,
        lease_id,
        sorted(steps),
    )
    return {row["step"] for row in rows}


@statement
async def add_samples(conn: asyncpg.Connection, samples: Sequence[tuple[Writer, ReportedSample]]) -> None:
    """Insert samples."""
    rows = (
        (
            *(writer.run_id, writer.lease_id, each.step, each.kind),
            *(make_storable_text(each.prompt), make_storable_text(each.completion), each.rewards, each.time),
        )
        for writer, each in samples
    )
    await conn.execute(
        """INSERT INTO samples (run_id, lease_id, step, kind, prompt, completion, rewards, time)
           SELECT * FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[],
                                $7::jsonb[], $8::float8[])""",
        *_columns(rows, 8),
    )


@statement
async def add_logs(conn: asyncpg.Connection, ranges: Sequence[tuple[SourceKey, int, bytes]]) -> None:
    """Insert byte ranges of logs, each with its offset."""
    columns = ["lease_id", "node", "source", "offset_bytes", "data"]
    await conn.copy_records_to_table(
        "log_chunks", records=[(*key, offset, data) for key, offset, data in ranges], columns=columns
    )


@statement
async def record_progress(conn: asyncpg.Connection, learned: Mapping[str, ProgressUpdate]) -> None:
    """Add what event lines say to the rows of runs. The first value of a pin is kept."""
    rows: list[tuple[Any, ...]] = [
        (run, news.step, news.total, news.epoch, news.metrics, news.pins) for run, news in sorted(learned.items())
    ]
    await conn.execute(
        """UPDATE runs r
           SET step = COALESCE(u.step, r.step), total = COALESCE(u.total, r.total), epoch = COALESCE(u.epoch, r.epoch),
               metrics = r.metrics || u.metrics, pins = u.pins || r.pins,
               progress_time = clock_timestamp(), update_time = clock_timestamp()
           FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::float8[], $5::jsonb[], $6::jsonb[])
                AS u(id, step, total, epoch, metrics, pins)
           WHERE r.id = u.id""",
        *_columns(rows, 6),
    )


def _columns(rows: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Return rows as the columns that `unnest` takes."""
    columns: list[list[Any]] = [[] for _ in range(width)]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns

"""The statements of `coordinator.store.events`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from coordinator.database.connections import make_storable_text
from coordinator.event_lines import MetricSeries, ReportedSample
from coordinator.store import events
from coordinator.store.events import ProgressUpdate, SourceKey, Writer
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.tables import Row, jsonb

repertoire = Repertoire()


def _leases(ex: Execution, lease_ids: Iterable[UUID]) -> list[Row]:
    found = (ex.get("leases", lease_id) for lease_id in sorted(set(lease_ids)))
    return [row for row in found if row is not None and row["end_time"] is None]


@repertoire.carries_out(events.lock_writers)
async def lock_writers(ex: Execution, lease_ids: Iterable[UUID], *, wait: bool) -> dict[UUID, Writer]:
    found: dict[UUID, Writer] = {}
    for lease in sorted(_leases(ex, lease_ids), key=lambda row: str(row["run_id"])):
        run = ex.get("runs", lease["run_id"])
        assert run is not None
        run = await ex.lock("runs", run, skip_locked=not wait)
        held = await ex.lock("leases", lease, _has_not_ended, skip_locked=not wait) if run else None
        if run is not None and held is not None:
            found[lease["id"]] = _writer(ex, run, held)
    return found


def _has_not_ended(row: Row) -> bool:
    return row["end_time"] is None


def _writer(ex: Execution, run: Row, lease: Row) -> Writer:
    nodes = {row["node"] for row in ex.where("places", "lease_id", lease["id"])}
    pins, metrics = dict(run["pins"]), set(run["metrics"])
    started = lease["start_time"] is not None
    resumed = lease["resumed_step"]
    return Writer(lease["id"], run["id"], lease["attempt"], run["state"], nodes, pins, metrics, started, resumed)


@repertoire.carries_out(events.find_unended)
async def find_unended(ex: Execution, lease_ids: Iterable[UUID]) -> set[UUID]:
    return {row["id"] for row in _leases(ex, lease_ids)}


@repertoire.carries_out(events.read_cursors)
async def read_cursors(ex: Execution, lease_ids: Iterable[UUID]) -> dict[SourceKey, int]:
    return {
        (row["lease_id"], row["node"], row["source"]): row["offset_bytes"]
        for lease_id in sorted(set(lease_ids))
        for row in ex.where("cursors", "lease_id", lease_id)
    }


@repertoire.carries_out(events.move_cursors)
async def move_cursors(ex: Execution, moved: Mapping[SourceKey, tuple[int, int]]) -> None:
    for (lease_id, node, source), (offset, dropped) in moved.items():
        values = {"lease_id": lease_id, "node": node, "source": source}
        if await ex.insert_new("cursors", **values, offset_bytes=offset, dropped=dropped) is None:
            (row,) = await ex.lock_all("cursors", [values])
            ex.write("cursors", row, offset_bytes=offset, dropped=row["dropped"] + dropped)


@repertoire.carries_out(events.add_points)
async def add_points(ex: Execution, points: Sequence[tuple[Writer, Mapping[str, MetricSeries]]]) -> None:
    for writer, metrics in points:
        for metric, series in metrics.items():
            await ex.insert(
                "metric_chunks",
                run_id=writer.run_id,
                lease_id=writer.lease_id,
                metric=metric,
                steps=list(series.steps),
                points=list(series.values),
                times=list(series.times),
            )


@repertoire.carries_out(events.find_evaluated)
async def find_evaluated(ex: Execution, run_id: str, lease_id: UUID, steps: Iterable[int]) -> set[int]:
    found: set[int] = set()
    for lease in ex.where("leases", "run_id", run_id):
        kept = lease["kept_until_step"]
        for chunk in ex.where("metric_chunks", "lease_id", lease["id"]) if lease["id"] != lease_id else ():
            if chunk["metric"][:5] == "eval_":
                found |= {step for step in chunk["steps"] if step in set(steps) and (kept is None or step <= kept)}
    return found


@repertoire.carries_out(events.add_samples)
async def add_samples(ex: Execution, samples: Sequence[tuple[Writer, ReportedSample]]) -> None:
    for writer, sample in samples:
        await ex.insert(
            "samples",
            run_id=writer.run_id,
            lease_id=writer.lease_id,
            step=sample.step,
            kind=sample.kind,
            prompt=make_storable_text(sample.prompt),
            completion=make_storable_text(sample.completion),
            rewards=jsonb(sample.rewards),
            time=sample.time,
        )


@repertoire.carries_out(events.add_logs)
async def add_logs(ex: Execution, ranges: Sequence[tuple[SourceKey, int, bytes]]) -> None:
    for (lease_id, node, source), offset, data in ranges:
        await ex.insert("log_chunks", lease_id=lease_id, node=node, source=source, offset_bytes=offset, data=data)


@repertoire.carries_out(events.record_progress)
async def record_progress(ex: Execution, learned: Mapping[str, ProgressUpdate]) -> None:
    for run_id, news in sorted(learned.items()):
        if (run := ex.get("runs", run_id)) and (run := await ex.lock("runs", run)):
            ex.write(
                "runs",
                run,
                step=run["step"] if news.step is None else news.step,
                total=run["total"] if news.total is None else news.total,
                epoch=run["epoch"] if news.epoch is None else news.epoch,
                metrics={**run["metrics"], **jsonb(news.metrics)},
                pins={**jsonb(news.pins), **run["pins"]},
                progress_time=ex.now,
                update_time=ex.now,
            )

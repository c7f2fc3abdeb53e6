"""Stores events exactly once: byte ranges of append-only files, each in the transaction that moves its cursor (S7).

Whatever waits from all streams of this process goes into one transaction, and while that commits the next batch
gathers: under load the batches grow and share the cost of a commit; without load nothing waits. The cursor, not a
unique index on points, makes it exactly once: a range that is stored already is acknowledged again, of an overlapping
one only the rest is stored, and one beyond the cursor is a gap. A lease that has ended is refused without affecting the
others in the batch. Nor does a run whose row another transaction has locked hold them up: its ranges are deferred, in
their order.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Never
from uuid import UUID

import asyncpg

from coordinator import event_lines
from coordinator.commands import retention
from coordinator.database.connections import Database, DatabaseAway
from coordinator.store import checkpoints, events, history, leases, runs
from coordinator.store.events import ProgressUpdate, SourceKey, Writer
from relay.errors import InvalidRequest, LeaseLost, OffsetGap, StartMissing
from relay.logs import bind, get_logger
from runfile import metric_names

JSON_SOURCES = ("events", "agent")
_BATCH_BYTES = 4 * 1024 * 1024
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of one source from `offset` on, and the number of bytes after them that are skipped."""

    run_id: str
    lease_id: UUID
    node: int
    source: str
    offset: int
    data: bytes
    skipped_bytes: int = 0

    @property
    def key(self) -> SourceKey:
        return self.lease_id, self.node, self.source

    @property
    def end(self) -> int:
        return self.offset + len(self.data) + self.skipped_bytes


#: The offset up to which a source is stored and durable, or why a range is refused; anything else ends the stream.
AppendResult = int | Exception


_Pending = tuple[ByteRange, "asyncio.Future[AppendResult]"]


class Appender:
    """Combines the byte ranges of all streams of a process. `run` is a service."""

    def __init__(self, database: Database, wall: Callable[[], float] = time.time) -> None:
        self._database = database
        self._wall = wall
        self._waiting: asyncio.Queue[_Pending] = asyncio.Queue()
        self._deferred: dict[UUID, list[_Pending]] = {}  #: by lease, while its run is locked by somebody else

    def append(self, byte_range: ByteRange) -> asyncio.Future[AppendResult]:
        """Queue a range; its result is set once it is durable. Ranges of one source are answered in the order they
        arrived.
        """
        answer: asyncio.Future[AppendResult] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((byte_range, answer))
        return answer

    async def run(self) -> Never:
        """Store batch after batch, forever."""
        async with asyncio.TaskGroup() as group:
            while True:
                batch = await self._batch()
                for lease_id in await self._store(batch, wait=False):
                    group.create_task(self._store_deferred(lease_id))
        raise AssertionError("never reached")

    async def _batch(self) -> list[_Pending]:
        """Return the ranges that wait, at least one; those of a deferred lease join its queue instead."""
        batch: list[_Pending] = []
        size = 0
        while not batch or (size < _BATCH_BYTES and not self._waiting.empty()):
            waiting = await self._waiting.get()
            if (others := self._deferred.get(waiting[0].lease_id)) is not None:
                others.append(waiting)
            else:
                batch.append(waiting)
                size += len(waiting[0].data)
        return batch

    async def _store_deferred(self, lease_id: UUID) -> None:
        """Store the deferred ranges of one lease, in order, until none waits."""
        with bind(lease=lease_id):
            while batch := self._deferred[lease_id]:
                self._deferred[lease_id] = []
                await self._store(batch, wait=True)
        del self._deferred[lease_id]

    async def _store(self, batch: Sequence[_Pending], *, wait: bool) -> list[UUID]:
        """Store a batch and set the results; without `wait`, return the leases that are newly deferred."""
        answers = await self._answers([byte_range for byte_range, _ in batch], wait=wait)
        newly_deferred = []
        for waiting, answer in zip(batch, answers, strict=True):
            byte_range, future = waiting
            if answer is None:
                if byte_range.lease_id not in self._deferred:
                    self._deferred[byte_range.lease_id] = []
                    newly_deferred.append(byte_range.lease_id)
                self._deferred[byte_range.lease_id].append(waiting)
            elif not future.done():  # its stream may have gone
                future.set_result(answer)
        return newly_deferred

    async def _answers(self, ranges: Sequence[ByteRange], *, wait: bool) -> Sequence[AppendResult | None]:
        try:
            return await append_ranges(self._database, ranges, wait=wait, wall=self._wall)
        except DatabaseAway as away:
            return [away] * len(ranges)
        except (asyncpg.PostgresError, ValueError, TypeError) as error:
            # Something in it that we did not foresee. The others must not pay for it: each on its own.
            if len(ranges) == 1:
                return [error]
            _log.warning("batch failed, its ranges are stored one by one", ranges=len(ranges), reason=error)
            return [answer for each in ranges for answer in await self._answers([each], wait=True)]


async def append_ranges(
    database: Database, ranges: Sequence[ByteRange], *, wait: bool = True, wall: Callable[[], float] = time.time
) -> list[AppendResult | None]:
    """Store ranges in one transaction, and return a result for each.

    Without `wait`, ranges whose run another transaction has locked are not stored, and their result is None. `wall`
    (seconds since the epoch) is the time of lines that have none.
    """
    async with database.transaction() as conn:
        lease_ids = {byte_range.lease_id for byte_range in ranges}
        writers = await events.lock_writers(conn, lease_ids, wait=wait)
        absent = lease_ids - writers.keys()
        locked = await events.find_unended(conn, absent) if absent and not wait else set()
        batch = _AppendBatch(writers, await events.read_cursors(conn, lease_ids), wall())
        answers = [None if byte_range.lease_id in locked else batch.take(byte_range) for byte_range in ranges]
        await _write_batch(conn, batch)
    return answers


@dataclass(slots=True)
class _AppendBatch:
    """What one transaction is going to write."""

    writers: dict[UUID, Writer]
    cursors: dict[SourceKey, int]
    now: float  #: epoch seconds
    moved: dict[SourceKey, int] = field(default_factory=lambda: defaultdict(int))  #: with the lines dropped on the way
    logs: list[tuple[SourceKey, int, bytes]] = field(default_factory=list)
    parsed: list[tuple[SourceKey, event_lines.ParsedLines]] = field(default_factory=list)

    def take(self, byte_range: ByteRange) -> AppendResult:
        writer = self.writers.get(byte_range.lease_id)
        if writer is None or writer.run_id != byte_range.run_id:
            return LeaseLost()
        if not writer.started:
            return StartMissing()
        if byte_range.node not in writer.nodes:
            return InvalidRequest(f"this lease has no node {byte_range.node}")
        stored = self.cursors.get(byte_range.key, 0)
        if byte_range.offset > stored:
            return OffsetGap(f"{byte_range.source} is stored up to byte {stored}", expected=str(stored))
        if byte_range.end > stored:
            self._take_rest(byte_range, stored, writer)
        return self.cursors.get(byte_range.key, 0)

    def _take_rest(self, byte_range: ByteRange, stored: int, writer: Writer) -> None:
        data, end = byte_range.data[stored - byte_range.offset :], byte_range.end
        if byte_range.source in JSON_SOURCES:
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # half a line: the next byte_range begins with it
                data, end = data[:whole], max(stored, byte_range.offset) + whole
            if end == stored:
                return
            parsed = event_lines.parse_lines(data, stored, now=self.now, known=writer.metrics)
            if (skipped := end - max(stored, byte_range.offset + len(byte_range.data))) > 0:
                parsed.drop(end - skipped, f"a line of {skipped} bytes was not even sent")
            self.parsed.append((byte_range.key, parsed))
            self.moved[byte_range.key] += parsed.dropped
        elif data:
            self.logs.append((byte_range.key, stored, data))
            self.moved[byte_range.key] += 0
        self.cursors[byte_range.key] = end


async def _write_batch(conn: asyncpg.Connection, batch: _AppendBatch) -> None:
    if not batch.moved:
        return
    results = _gather_evaluations(batch)
    await _drop_repeated_evaluations(conn, batch)
    await events.move_cursors(conn, {key: (batch.cursors[key], dropped) for key, dropped in batch.moved.items()})
    if batch.logs:
        await events.add_logs(conn, batch.logs)
    await events.add_points(conn, _merge_points(batch))
    for lease_id, by_step in results.items():
        await _label_checkpoints(conn, lease_id, by_step)
    if samples := [(batch.writers[key[0]], each) for key, parsed in batch.parsed for each in parsed.samples]:
        await events.add_samples(conn, samples)
    await events.record_progress(conn, _merge_progress(batch))
    for (lease_id, _, _), parsed in batch.parsed:
        if parsed.resume is not None:
            await leases.record_fidelity(conn, lease_id, parsed.resume.fidelity, parsed.resume.reasons)
    for key, parsed in batch.parsed:
        await _record_history(conn, batch.writers[key[0]], key, parsed)
    await history.announce(conn, sorted({batch.writers[lease].run_id for lease, _, _ in batch.moved}))


async def _drop_repeated_evaluations(conn: asyncpg.Connection, batch: _AppendBatch) -> None:
    """Take out what an attempt measures again of the weights that it resumed from, which the curve has already.

    A trainer that was cut after its evaluation evaluates again, since its random state is the one before it.
    """
    for key, parsed in batch.parsed:
        writer = batch.writers[key[0]]
        evaluated = {name: points for name, points in parsed.series.items() if name.startswith("eval_")}
        steps = {step for points in evaluated.values() for step in points.steps if step <= writer.resumed_step}
        if not steps or not (repeated := await events.find_evaluated(conn, writer.run_id, writer.lease_id, steps)):
            continue
        parsed.samples = [each for each in parsed.samples if each.kind != "prompt" or each.step not in repeated]
        for name, points in evaluated.items():
            batch.moved[key] += points.leave_out(repeated)
            if not points.steps:
                del parsed.series[name]


def select_evaluation(values: Mapping[str, float]) -> dict[str, float]:
    """Return those values that an evaluation measured of the model, and that can be compared."""
    return {
        name: value
        for name, value in values.items()
        if metric_names.is_evaluation_result(name) and math.isfinite(value)
    }


def _gather_evaluations(batch: _AppendBatch) -> dict[UUID, dict[int, dict[str, float]]]:
    """Return the results of evaluations by lease and step."""
    results: dict[UUID, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (lease_id, _, _), parsed in batch.parsed:
        for name, points in parsed.series.items():
            for step, value in zip(points.steps, points.values, strict=True):
                if found := select_evaluation({name: value}):
                    results[lease_id][step] |= found
    return results


async def _label_checkpoints(
    conn: asyncpg.Connection, lease_id: UUID, results: Mapping[int, Mapping[str, float]]
) -> None:
    """Add the results of evaluations to the checkpoints of their steps, in the transaction that stores them and moves
    the cursor: once, however often the lines are sent. A checkpoint that is registered later finds them itself.
    """
    labelled = [await checkpoints.add_evaluation(conn, lease_id, *each) for each in sorted(results.items())]
    if any(labelled):
        run = await runs.lock_by_lease(conn, lease_id)
        await retention.apply_policy(conn, run.id, run.spec)


def _merge_points(batch: _AppendBatch) -> list[tuple[Writer, dict[str, event_lines.MetricSeries]]]:
    """Return one chunk per lease and metric, however many ranges brought its points."""
    merged: dict[UUID, dict[str, event_lines.MetricSeries]] = defaultdict(dict)
    for (lease_id, _, _), parsed in batch.parsed:
        for metric, series in parsed.series.items():
            whole = merged[lease_id].setdefault(metric, event_lines.MetricSeries())
            whole.steps += series.steps
            whole.values += series.values
            whole.times += series.times
    return [(batch.writers[lease_id], metrics) for lease_id, metrics in merged.items()]


def _merge_progress(batch: _AppendBatch) -> dict[str, ProgressUpdate]:
    """Return the progress of each run. For a gang, steps and epochs are those that node 0 reports."""
    news: dict[str, ProgressUpdate] = defaultdict(ProgressUpdate)
    for (lease_id, node, _), parsed in batch.parsed:
        learned = news[batch.writers[lease_id].run_id]
        learned.metrics |= {metric: series.values[-1] for metric, series in parsed.series.items()}
        learned.pins = parsed.pins | learned.pins
        if node == 0:
            learned.step = parsed.step if parsed.step is not None else learned.step
            learned.total = parsed.total if parsed.total is not None else learned.total
            learned.epoch = parsed.epoch if parsed.epoch is not None else learned.epoch
    return {run: learned for run, learned in sorted(news.items()) if learned != ProgressUpdate()}


async def _record_history(
    conn: asyncpg.Connection, writer: Writer, key: SourceKey, parsed: event_lines.ParsedLines
) -> None:
    """Append what belongs in the run's history: messages, pins, and what was dropped."""
    entries: list[tuple[str, str, str, dict[str, Any]]]
    entries = [(message.kind, message.text, message.level, message.details) for message in parsed.messages]
    for name, value in parsed.pins.items():
        if name not in writer.pins:
            writer.pins[name] = value
            entries.append(("pinned", f"{name} is {value}", "info", {"name": name, "value": value}))
    if parsed.dropped:
        what = "line or value" if parsed.dropped == 1 else "lines or values"
        text = f"{parsed.dropped} {what} of {key[2]} dropped: {'; '.join(parsed.named)}"
        details = {"source": key[2], "node": key[1], "dropped": parsed.dropped, "first": parsed.named}
        entries.append(("dropped", text, "warning", details))
    for kind, text, level, details in entries:
        await history.record(
            conn,
            writer.run_id,
            kind,
            text,
            lease_id=writer.lease_id,
            attempt=writer.attempt,
            level=level,
            details=details,
            state=writer.run_state,
        )

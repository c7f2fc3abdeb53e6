"""Events exactly once: stretches of append-only files, each stored in the transaction that moves its cursor (S7).

What waits from all streams of this process goes into one transaction, and while that commits the next gathers: under
load the batches grow and the cost of a commit is shared; without load nobody waits. The cursor, not a unique index on
points, makes it exactly once: a stretch that was stored is acked again, of one that overlaps only the rest is taken,
and one beyond the cursor is a gap. A lease that has ended is refused; the others in the batch are not touched by it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Never
from uuid import UUID

import asyncpg

from coordinator import lines
from coordinator.database import Database, DatabaseAway
from coordinator.store import events, history
from coordinator.store.events import Key, Progress, Writer
from relay.errors import LeaseLost, OffsetGap

JSON_SOURCES = ("events", "agent")
_BATCH_BYTES = 4 * 1024 * 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of one source from `offset` on, and how many after them are passed over."""

    run_id: str
    lease_id: UUID
    node: int
    source: str
    offset: int
    data: bytes
    skipped: int = 0

    @property
    def key(self) -> Key:
        return self.lease_id, self.node, self.source

    @property
    def end(self) -> int:
        return self.offset + len(self.data) + self.skipped


#: The offset up to which a source is stored and durable, or why a stretch is refused; anything else ends the stream.
Answer = int | Exception


class Appender:
    """Combines the stretches of all streams of a process. `run` is a service."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: asyncio.Queue[tuple[Stretch, asyncio.Future[Answer]]] = asyncio.Queue()

    def append(self, stretch: Stretch) -> asyncio.Future[Answer]:
        """Its answer, once it is durable. Stretches of a source are answered in the order they came."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((stretch, answer))
        return answer

    async def run(self) -> Never:
        """For ever."""
        while True:
            batch = [await self._waiting.get()]
            size = len(batch[0][0].data)
            while size < _BATCH_BYTES and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                size += len(batch[-1][0].data)
            answers = await self._store([stretch for stretch, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # its stream may have gone
                    future.set_result(answer)

    async def _store(self, stretches: Sequence[Stretch]) -> list[Answer]:
        try:
            return await append(self._database, stretches)
        except DatabaseAway as away:
            return [away] * len(stretches)
        except (asyncpg.PostgresError, ValueError, TypeError) as error:
            # Something in it that we did not foresee. The others must not pay for it: each on its own.
            if len(stretches) == 1:
                return [error]
            _log.warning("a batch of %s stretches failed and is stored one by one: %s", len(stretches), error)
            return [answer for stretch in stretches for answer in await self._store([stretch])]


async def append(database: Database, stretches: Sequence[Stretch]) -> list[Answer]:
    """Store stretches in one transaction; an answer for each."""
    async with database.transaction() as conn:
        lease_ids = {stretch.lease_id for stretch in stretches}
        batch = _Batch(await events.writers(conn, lease_ids), await events.cursors(conn, lease_ids), time.time())
        answers: list[Answer] = [batch.take(stretch) for stretch in stretches]
        await _write(conn, batch)
    return answers


@dataclass(slots=True)
class _Batch:
    """What one transaction is going to write."""

    writers: dict[UUID, Writer]
    cursors: dict[Key, int]
    now: float  #: epoch seconds
    moved: dict[Key, int] = field(default_factory=lambda: defaultdict(int))  #: with the lines dropped on the way
    logs: list[tuple[Key, int, bytes]] = field(default_factory=list)
    parsed: list[tuple[Key, lines.Parsed]] = field(default_factory=list)

    def take(self, stretch: Stretch) -> Answer:
        writer = self.writers.get(stretch.lease_id)
        if writer is None or writer.run_id != stretch.run_id:
            return LeaseLost()
        stored = self.cursors.get(stretch.key, 0)
        if stretch.offset > stored:
            return OffsetGap(f"{stretch.source} is stored up to byte {stored}", expected=str(stored))
        if stretch.end > stored:
            self._take_rest(stretch, stored, writer)
        return self.cursors.get(stretch.key, 0)

    def _take_rest(self, stretch: Stretch, stored: int, writer: Writer) -> None:
        data, end = stretch.data[stored - stretch.offset :], stretch.end
        if stretch.source in JSON_SOURCES:
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # half a line: the next stretch begins with it
                data, end = data[:whole], max(stored, stretch.offset) + whole
            if end == stored:
                return
            parsed = lines.parse(data, stored, now=self.now, known=writer.metrics)
            if (skipped := end - max(stored, stretch.offset + len(stretch.data))) > 0:
                parsed.drop(end - skipped, f"a line of {skipped} bytes was not even sent")
            self.parsed.append((stretch.key, parsed))
            self.moved[stretch.key] += parsed.dropped
        elif data:
            self.logs.append((stretch.key, stored, data))
            self.moved[stretch.key] += 0
        self.cursors[stretch.key] = end


async def _write(conn: asyncpg.Connection, batch: _Batch) -> None:
    if not batch.moved:
        return
    await events.move_cursors(conn, {key: (batch.cursors[key], dropped) for key, dropped in batch.moved.items()})
    if batch.logs:
        await events.add_logs(conn, batch.logs)
    await events.add_points(conn, _points(batch))
    await events.progress(conn, _news(batch))
    for key, parsed in batch.parsed:
        await _tell(conn, batch.writers[key[0]], key, parsed)
    await history.announce(conn, sorted({batch.writers[lease].run_id for lease, _, _ in batch.moved}))


def _points(batch: _Batch) -> list[tuple[Writer, dict[str, lines.Series]]]:
    """One chunk per lease and metric, however many stretches brought its points."""
    merged: dict[UUID, dict[str, lines.Series]] = defaultdict(dict)
    for (lease_id, _, _), parsed in batch.parsed:
        for metric, series in parsed.series.items():
            whole = merged[lease_id].setdefault(metric, lines.Series())
            whole.steps += series.steps
            whole.values += series.values
            whole.times += series.times
    return [(batch.writers[lease_id], metrics) for lease_id, metrics in merged.items()]


def _news(batch: _Batch) -> dict[str, Progress]:
    """What runs learn; of a gang, how far it is, is what node 0 says."""
    news: dict[str, Progress] = defaultdict(Progress)
    for (lease_id, node, _), parsed in batch.parsed:
        learned = news[batch.writers[lease_id].run_id]
        learned.metrics |= {metric: series.values[-1] for metric, series in parsed.series.items()}
        learned.pins = parsed.pins | learned.pins
        if node == 0:
            learned.step = parsed.step if parsed.step is not None else learned.step
            learned.total = parsed.total if parsed.total is not None else learned.total
            learned.epoch = parsed.epoch if parsed.epoch is not None else learned.epoch
    return {run: learned for run, learned in sorted(news.items()) if learned != Progress()}


async def _tell(conn: asyncpg.Connection, writer: Writer, key: Key, parsed: lines.Parsed) -> None:
    """What belongs into the run's history."""
    entries: list[tuple[str, str, str, dict[str, Any]]]
    entries = [("message", message.text, message.level, {}) for message in parsed.messages]
    for name, value in parsed.pins.items():
        if name not in writer.pins:
            writer.pins[name] = value
            entries.append(("pinned", f"{name} is {value}", "info", {"name": name, "value": value}))
    if parsed.dropped:
        text = f"{parsed.dropped} lines or values of {key[2]} were dropped: {'; '.join(parsed.named)}"
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

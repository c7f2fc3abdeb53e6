"""What streams out of a run: its history as it happens, its curve, its logs. Watched from any replica.

A watcher subscribes, then reads, then waits: nothing that is committed meanwhile is missed. Between two reads nothing
is held in the database, so a slow reader costs nobody anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace

from coordinator import event_lines
from coordinator.database.connections import Database
from coordinator.lifecycle import RunState
from coordinator.rpc import requests, responses
from coordinator.store import history, logs, metrics, progress, samples
from coordinator.store.history import CHANNEL, Entry
from coordinator.store.runs import OVER
from relay.errors import InvalidRequest
from relay.v1 import runs_pb2 as pb

ENTRIES = 200  # of a history, read at once
CHUNKS = 1000  # of a curve
POINTS = 10_000  # in one message
SAMPLES = 16  # in one message, each of 32 Ki characters at most
LOG_CHUNKS = 16  # up to 64 KiB each, as agents send them


async def watch_run(db: Database, request: pb.WatchRunRequest) -> AsyncIterator[pb.WatchRunResponse]:
    """History from a number on, and progress when it changes; ends with the run, once all has been told."""
    run_id, told, after = requests.run_id(request.name), pb.Progress(), request.after_sequence
    async with db.notifications.subscribe(CHANNEL, run_id) as changed:
        while True:
            changed.clear()
            async with db.connection() as conn:
                run = await progress.look(conn, run_id)
                entries = await history.read(conn, run_id, after, ENTRIES)
            for entry in entries:
                after = entry.sequence
                yield pb.WatchRunResponse(event=_event(run_id, entry))
            if (reported := _progress(run)) != told:
                told = reported
                yield pb.WatchRunResponse(progress=reported)
            if after >= run.event_sequence:
                if RunState(run.state) in OVER:
                    return
                await changed.wait()


def _event(run_id: str, entry: Entry) -> pb.RunEvent:
    return pb.RunEvent(
        sequence=entry.sequence,
        time=requests.timestamp(entry.time),
        kind=pb.RunEvent.Kind.Value(entry.kind.upper()),
        lease=requests.lease_name(run_id, entry.lease_id) if entry.lease_id else "",
        attempt=entry.attempt,
        text=entry.message,
        level=entry.level,
        details=requests.struct(entry.details),
        state=responses.run_state(entry.state),
    )


def _progress(run: progress.Look) -> pb.Progress:
    return pb.Progress(
        step=run.step,
        total=run.total,
        epoch=run.epoch,
        metrics={name: float(value) for name, value in run.metrics.items()},
        time=requests.timestamp(run.progress_time),
    )


async def read_metrics(db: Database, request: pb.ReadMetricsRequest) -> AsyncIterator[pb.ReadMetricsResponse]:
    """The curve, metric by metric, each in the order of arrival."""
    run_id, after = requests.run_id(request.name), ("", 0)
    while True:
        async with db.connection() as conn:
            await progress.look(conn, run_id)
            chunks = await metrics.read(conn, run_id, request.metrics, after, CHUNKS)
        for stretch in _stretches(run_id, chunks, request):
            yield stretch
        if len(chunks) < CHUNKS:
            return
        after = (chunks[-1].metric, chunks[-1].id)


def _stretches(
    run_id: str, chunks: Iterable[metrics.Chunk], request: pb.ReadMetricsRequest
) -> Iterator[pb.ReadMetricsResponse]:
    """Points that belong together, in messages of a bounded size."""
    stretch, last = pb.ReadMetricsResponse(), None
    for chunk in chunks:
        for step, value, time in zip(chunk.steps, chunk.values, chunk.times, strict=True):
            superseded = chunk.kept_until is not None and step > chunk.kept_until
            if superseded and not request.include_superseded:
                continue
            if request.HasField("after_step") and step <= request.after_step:
                continue
            belongs = (chunk.metric, chunk.lease_id, superseded)
            if belongs != last or len(stretch.steps) == POINTS:
                if stretch.steps:
                    yield stretch
                lease = requests.lease_name(run_id, chunk.lease_id)
                stretch, last = _stretch(chunk, lease, superseded), belongs
            stretch.steps.append(step)
            stretch.values.append(value)
            stretch.times.append(time)
    if stretch.steps:
        yield stretch


def _stretch(chunk: metrics.Chunk, lease: str, superseded: bool) -> pb.ReadMetricsResponse:
    return pb.ReadMetricsResponse(metric=chunk.metric, attempt=chunk.attempt, lease=lease, superseded=superseded)


async def read_samples(db: Database, request: pb.ReadSamplesRequest) -> AsyncIterator[pb.ReadSamplesResponse]:
    """Samples oldest first."""
    which, after = _sample_filter(request), 0
    async with db.connection() as conn:
        await progress.look(conn, which.run_id)
        if request.last_steps:
            first = await samples.first_of_last(conn, which, request.last_steps)
            which = replace(which, from_step=max(which.from_step, first))
    while True:
        async with db.connection() as conn:
            found = await samples.read(conn, which, after, SAMPLES)
        if found:
            yield pb.ReadSamplesResponse(samples=[_sample(which.run_id, each) for each in found])
        if len(found) < SAMPLES:
            return
        after = found[-1].id


def _sample_filter(request: pb.ReadSamplesRequest) -> samples.SampleFilter:
    if request.kind and request.kind not in event_lines.SAMPLES:
        raise InvalidRequest(f"{request.kind[:50]!r} is no kind of sample: {', '.join(event_lines.SAMPLES)}")
    if request.last_steps < 0:
        raise InvalidRequest("last_steps is not negative")
    return samples.SampleFilter(
        run_id=requests.run_id(request.name),
        kinds=(request.kind,) if request.kind else event_lines.SAMPLES,
        from_step=request.from_step if request.HasField("from_step") else 0,
        to_step=request.to_step if request.HasField("to_step") else 2**62,
        superseded=request.include_superseded,
    )


def _sample(run_id: str, shown: samples.Shown) -> pb.Sample:
    return pb.Sample(
        attempt=shown.attempt,
        lease=requests.lease_name(run_id, shown.lease_id),
        step=shown.step,
        kind=shown.kind,
        prompt=shown.prompt,
        completion=shown.completion,
        rewards={name: float(value) for name, value in shown.rewards.items()},
        time=shown.time,
        superseded=shown.superseded,
    )


async def read_logs(db: Database, request: pb.ReadLogsRequest) -> AsyncIterator[pb.ReadLogsResponse]:
    """Logs oldest first; with `follow`, until the run ends."""
    which = _log_filter(request)
    async with db.notifications.subscribe(CHANNEL, which.run_id) as changed:
        after = 0
        if request.tail_lines:
            for chunk in await _tail(db, which, request.tail_lines):
                after = chunk.id
                yield _log(chunk)
        while True:
            changed.clear()
            async with db.connection() as conn:
                run = await progress.look(conn, which.run_id)
                chunks = await logs.read(conn, which, after, LOG_CHUNKS)
            for chunk in chunks:
                after = chunk.id
                yield _log(chunk)
            if len(chunks) < LOG_CHUNKS:
                if not request.follow or RunState(run.state) in OVER:
                    return
                await changed.wait()


def _log_filter(request: pb.ReadLogsRequest) -> logs.LogFilter:
    if unknown := set(request.sources) - {"stdout", "stderr"}:
        raise InvalidRequest(f"{sorted(unknown)[0][:50]!r} is no log: stdout, stderr")
    return logs.LogFilter(
        run_id=requests.run_id(request.name),
        attempt=request.attempt,
        node=request.node if request.HasField("node") else None,
        sources=request.sources,
        since=request.since.ToTimedelta() if request.HasField("since") else None,
    )


async def _tail(db: Database, which: logs.LogFilter, wanted: int) -> list[logs.Chunk]:
    """The chunks with the last lines, oldest first, the first of them cut to where those begin."""
    found: list[logs.Chunk] = []
    before, counted = 2**62, 0
    while counted <= wanted:
        async with db.connection() as conn:
            chunks = await logs.read_back(conn, which, before, LOG_CHUNKS)
        for chunk in chunks:
            counted += chunk.data.count(b"\n")
            found.append(chunk)
            if counted > wanted:
                found[-1] = _without_lines(chunk, counted - wanted)
                break
        if len(chunks) < LOG_CHUNKS:
            break
        before = chunks[-1].id
    return found[::-1]


def _without_lines(chunk: logs.Chunk, count: int) -> logs.Chunk:
    """Without its first lines."""
    cut = 0
    for _ in range(count):
        cut = chunk.data.index(b"\n", cut) + 1
    return replace(chunk, offset=chunk.offset + cut, data=chunk.data[cut:])


def _log(chunk: logs.Chunk) -> pb.ReadLogsResponse:
    return pb.ReadLogsResponse(
        attempt=chunk.attempt,
        node=chunk.node,
        source=chunk.source,
        offset=chunk.offset,
        data=chunk.data,
        time=requests.timestamp(chunk.time),
    )

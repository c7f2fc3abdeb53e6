"""Streams of a run: its history as it happens, its curve, its samples, its logs. Any replica can serve them.

A watcher subscribes, then reads, then waits, so that it misses nothing that is committed in the meantime. Between two
reads it holds nothing in the database, so a slow reader delays no one else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace

from coordinator import event_lines
from coordinator.database.connections import Database
from coordinator.lifecycle import RunState
from coordinator.rpc import requests, responses
from coordinator.store import history, streams
from coordinator.store.history import CHANNEL, HistoryEntry
from coordinator.store.runs import OVER
from relay.errors import InvalidRequest
from relay.v1 import runs_pb2 as pb

ENTRIES = 200  # of a history, read at once
CHUNKS = 1000  # of a curve
POINTS = 10_000  # in one message
SAMPLES = 16  # in one message, each of 32 Ki characters at most
LOG_CHUNKS = 16  # up to 64 KiB each, as agents send them


async def watch_run(db: Database, request: pb.WatchRunRequest) -> AsyncIterator[pb.WatchRunResponse]:
    """Stream the history after a sequence number, and progress when it changes; end with the run, once all has been
    sent.
    """
    run_id, sent, after = requests.parse_run_id(request.name), pb.Progress(), request.after_sequence
    async with db.notifications.subscribe(CHANNEL, run_id) as changed:
        while True:
            changed.clear()
            async with db.connection() as conn:
                run = await streams.read_progress(conn, run_id)
                entries = await history.read(conn, run_id, after, ENTRIES)
            for entry in entries:
                after = entry.sequence
                yield pb.WatchRunResponse(event=_render_event(run_id, entry))
            if (reported := _render_progress(run)) != sent:
                sent = reported
                yield pb.WatchRunResponse(progress=reported)
            if after >= run.event_sequence:
                if RunState(run.state) in OVER:
                    return
                await changed.wait()


def _render_event(run_id: str, entry: HistoryEntry) -> pb.RunEvent:
    return pb.RunEvent(
        sequence=entry.sequence,
        time=responses.render_timestamp(entry.time),
        kind=pb.RunEvent.Kind.Value(entry.kind.upper()),
        lease=responses.format_lease_name(run_id, entry.lease_id) if entry.lease_id else "",
        attempt=entry.attempt,
        text=entry.message,
        level=entry.level,
        details=responses.render_struct(entry.details),
        state=responses.render_run_state(entry.state),
    )


def _render_progress(run: streams.RunProgress) -> pb.Progress:
    return pb.Progress(
        step=run.step,
        total=run.total,
        epoch=run.epoch,
        metrics={name: float(value) for name, value in run.metrics.items()},
        time=responses.render_timestamp(run.progress_time),
    )


async def read_metrics(db: Database, request: pb.ReadMetricsRequest) -> AsyncIterator[pb.ReadMetricsResponse]:
    """Stream the curve, metric by metric, each in the order of arrival."""
    run_id, after = requests.parse_run_id(request.name), ("", 0)
    while True:
        async with db.connection() as conn:
            await streams.read_progress(conn, run_id)
            chunks = await streams.read_metrics(conn, run_id, request.metrics, after, CHUNKS)
        for series in _group_points(run_id, chunks, request):
            yield series
        if len(chunks) < CHUNKS:
            return
        after = (chunks[-1].metric, chunks[-1].id)


def _group_points(
    run_id: str, chunks: Iterable[streams.MetricSlice], request: pb.ReadMetricsRequest
) -> Iterator[pb.ReadMetricsResponse]:
    """Group points that belong together into messages of a bounded size."""
    series, last = pb.ReadMetricsResponse(), None
    for chunk in chunks:
        for step, value, time in zip(chunk.steps, chunk.values, chunk.times, strict=True):
            superseded = chunk.kept_until is not None and step > chunk.kept_until
            if superseded and not request.include_superseded:
                continue
            if request.HasField("after_step") and step <= request.after_step:
                continue
            belongs = (chunk.metric, chunk.lease_id, superseded)
            if belongs != last or len(series.steps) == POINTS:
                if series.steps:
                    yield series
                lease = responses.format_lease_name(run_id, chunk.lease_id)
                series, last = _new_series(chunk, lease, superseded), belongs
            series.steps.append(step)
            series.values.append(value)
            series.times.append(time)
    if series.steps:
        yield series


def _new_series(chunk: streams.MetricSlice, lease: str, superseded: bool) -> pb.ReadMetricsResponse:
    return pb.ReadMetricsResponse(metric=chunk.metric, attempt=chunk.attempt, lease=lease, superseded=superseded)


async def read_samples(db: Database, request: pb.ReadSamplesRequest) -> AsyncIterator[pb.ReadSamplesResponse]:
    """Stream samples, oldest first."""
    which, after = _parse_sample_filter(request), 0
    async with db.connection() as conn:
        await streams.read_progress(conn, which.run_id)
        if request.last_steps:
            first = await streams.first_of_last_steps(conn, which, request.last_steps)
            which = replace(which, from_step=max(which.from_step, first))
    while True:
        async with db.connection() as conn:
            found = await streams.read_samples(conn, which, after, SAMPLES)
        if found:
            yield pb.ReadSamplesResponse(samples=[_render_sample(which.run_id, each) for each in found])
        if len(found) < SAMPLES:
            return
        after = found[-1].id


def _parse_sample_filter(request: pb.ReadSamplesRequest) -> streams.SampleFilter:
    if request.kind and request.kind not in event_lines.SAMPLE_KINDS:
        raise InvalidRequest(f"{request.kind[:50]!r} is no kind of sample: {', '.join(event_lines.SAMPLE_KINDS)}")
    if request.last_steps < 0:
        raise InvalidRequest("last_steps must not be negative")
    return streams.SampleFilter(
        run_id=requests.parse_run_id(request.name),
        kinds=(request.kind,) if request.kind else event_lines.SAMPLE_KINDS,
        from_step=request.from_step if request.HasField("from_step") else 0,
        to_step=request.to_step if request.HasField("to_step") else 2**62,
        superseded=request.include_superseded,
    )


def _render_sample(run_id: str, shown: streams.StoredSample) -> pb.Sample:
    return pb.Sample(
        attempt=shown.attempt,
        lease=responses.format_lease_name(run_id, shown.lease_id),
        step=shown.step,
        kind=shown.kind,
        prompt=shown.prompt,
        completion=shown.completion,
        rewards={name: float(value) for name, value in shown.rewards.items()},
        time=shown.time,
        superseded=shown.superseded,
    )


async def read_logs(db: Database, request: pb.ReadLogsRequest) -> AsyncIterator[pb.ReadLogsResponse]:
    """Stream logs, oldest first; with `follow`, until the run ends."""
    which = _parse_log_filter(request)
    async with db.notifications.subscribe(CHANNEL, which.run_id) as changed:
        after = 0
        if request.tail_lines:
            for chunk in await _read_tail(db, which, request.tail_lines):
                after = chunk.id
                yield _render_log(chunk)
        while True:
            changed.clear()
            async with db.connection() as conn:
                run = await streams.read_progress(conn, which.run_id)
                chunks = await streams.read_logs(conn, which, after, LOG_CHUNKS)
            for chunk in chunks:
                after = chunk.id
                yield _render_log(chunk)
            if len(chunks) < LOG_CHUNKS:
                if not request.follow or RunState(run.state) in OVER:
                    return
                await changed.wait()


def _parse_log_filter(request: pb.ReadLogsRequest) -> streams.LogFilter:
    if unknown := set(request.sources) - {"stdout", "stderr"}:
        raise InvalidRequest(f"{sorted(unknown)[0][:50]!r} is no log: stdout, stderr")
    return streams.LogFilter(
        run_id=requests.parse_run_id(request.name),
        attempt=request.attempt,
        node=request.node if request.HasField("node") else None,
        sources=request.sources,
        since=request.since.ToTimedelta() if request.HasField("since") else None,
    )


async def _read_tail(db: Database, which: streams.LogFilter, wanted: int) -> list[streams.LogSlice]:
    """Return the chunks with the last lines, oldest first, the first of them cut to where those lines begin."""
    found: list[streams.LogSlice] = []
    before, counted = 2**62, 0
    while counted <= wanted:
        async with db.connection() as conn:
            chunks = await streams.read_logs_backwards(conn, which, before, LOG_CHUNKS)
        for chunk in chunks:
            counted += chunk.data.count(b"\n")
            found.append(chunk)
            if counted > wanted:
                found[-1] = _drop_lines(chunk, counted - wanted)
                break
        if len(chunks) < LOG_CHUNKS:
            break
        before = chunks[-1].id
    return found[::-1]


def _drop_lines(chunk: streams.LogSlice, count: int) -> streams.LogSlice:
    """Return a chunk without its first lines."""
    cut = 0
    for _ in range(count):
        cut = chunk.data.index(b"\n", cut) + 1
    return replace(chunk, offset=chunk.offset + cut, data=chunk.data[cut:])


def _render_log(chunk: streams.LogSlice) -> pb.ReadLogsResponse:
    return pb.ReadLogsResponse(
        attempt=chunk.attempt,
        node=chunk.node,
        source=chunk.source,
        offset=chunk.offset,
        data=chunk.data,
        time=responses.render_timestamp(chunk.time),
    )

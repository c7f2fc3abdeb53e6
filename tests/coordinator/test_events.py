"""Events exactly once (S2, S7), through gRPC and on the database."""

import asyncio
import json
import math
import random
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.commands.events import Appender, AppendResult, ByteRange, append_ranges
from coordinator.database import connections, postgres
from coordinator.database.connections import Database
from relay.errors import InvalidRequest, LeaseLost, OffsetGap, StartMissing, from_status
from relay.v1 import agents_pb2, runs_pb2
from tests.conftest import RunningCoordinator, cloned, serving


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with connections.connect_database(database_url) as connected:
        yield connected


async def _lease(db: Database, run: str = "r", attempt: int = 1) -> uuid.UUID:
    """A run that is held, without anybody holding it."""
    async with db.transaction() as conn:
        await conn.execute(
            """INSERT INTO runs (id, state, wanted, spec, request_digest) VALUES ($1, 'running', 'run', '{}', '')
               ON CONFLICT DO NOTHING""",
            run,
        )
        query = """INSERT INTO leases (run_id, attempt, state, policy, start_time)
                   VALUES ($1, $2, 'held', 'continue', clock_timestamp()) RETURNING id"""
        lease: uuid.UUID = await conn.fetchval(query, run, attempt)
        await conn.execute(
            "INSERT INTO agents (name, instance_id, boot_id) VALUES ('a', '', '') ON CONFLICT DO NOTHING"
        )
        await conn.execute(
            """INSERT INTO places (lease_id, node, agent, session_id, boot_id, slots, expire_time)
               VALUES ($1, 0, 'a', gen_random_uuid(), '', '{0}', 'infinity')""",
            lease,
        )
    return lease


async def _end(db: Database, lease: uuid.UUID) -> None:
    async with db.connection() as conn:
        await conn.execute("UPDATE leases SET state = 'ended', end_time = clock_timestamp() WHERE id = $1", lease)


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _metrics(steps: Iterable[int]) -> bytes:
    return _lines({"type": "metric", "step": step, "values": {"loss": step / 2}} for step in steps)


async def _points(db: Database, run: str = "r", metric: str = "loss") -> list[tuple[int, float]]:
    async with db.connection() as conn:
        rows = await conn.fetch(
            "SELECT steps, points FROM metric_chunks WHERE run_id = $1 AND metric = $2 ORDER BY id", run, metric
        )
    return [pair for row in rows for pair in zip(row["steps"], row["points"], strict=True)]


async def _history(db: Database, run: str = "r") -> list[tuple[str, str]]:
    async with db.connection() as conn:
        rows = await conn.fetch("SELECT kind, message FROM run_events WHERE run_id = $1 ORDER BY sequence", run)
    return [(row["kind"], row["message"]) for row in rows]


def _stretch(lease: uuid.UUID, data: bytes, offset: int = 0, source: str = "events", **more: Any) -> ByteRange:
    return ByteRange("r", lease, 0, source, offset, data, **more)


async def test_twice_overlapping_or_far_behind_it_counts_once(db: Database) -> None:
    lease, data = await _lease(db), _metrics(range(4))
    line = len(data) // 4
    whole = _stretch(lease, data)
    assert await append_ranges(db, [whole]) == [len(data)]
    assert await append_ranges(db, [whole, whole]) == [len(data)] * 2
    assert await append_ranges(db, [_stretch(lease, data[:line])]) == [len(data)]
    beyond = data[2 * line :] + _metrics([4])
    assert await append_ranges(db, [_stretch(lease, beyond, 2 * line)]) == [2 * line + len(beyond)]
    assert await _points(db) == [(step, step / 2) for step in range(5)]


async def test_a_node_that_the_lease_does_not_have_is_refused(db: Database) -> None:
    lease = await _lease(db)
    (refused,) = await append_ranges(db, [replace(_stretch(lease, _metrics([1])), node=1)])
    assert isinstance(refused, InvalidRequest) and await _points(db) == []


async def test_a_run_that_is_locked_holds_up_no_other(db: Database) -> None:
    """Its own byte ranges wait, and are stored in their order."""
    locked, free = await _lease(db), await _lease(db, run="other")
    data, line = _metrics([1, 2]), len(_metrics([1]))
    appender = Appender(db)
    running = asyncio.create_task(appender.run())
    async with asyncio.timeout(60):
        async with db.transaction() as conn:
            await conn.execute("SELECT 1 FROM runs WHERE id = 'r' FOR UPDATE")
            held_up = [appender.append(_stretch(locked, data[:line]))]
            for end in (line, 2 * line):
                stretch = replace(_stretch(free, data[end - line : end], end - line), run_id="other")
                assert await appender.append(stretch) == end
                held_up.append(appender.append(_stretch(locked, data[line:], line)))
            assert not any(answer.done() for answer in held_up)
        assert await asyncio.gather(*held_up) == [line, 2 * line, 2 * line]
        assert await appender.append(_stretch(locked, _metrics([3]), 2 * line)) == 3 * line
    running.cancel()
    assert [step for step, _ in await _points(db)] == [1, 2, 3]


async def test_a_gap_is_refused_and_says_what_is_expected(db: Database) -> None:
    lease, data = await _lease(db), _metrics([1])
    (gap,) = await append_ranges(db, [_stretch(lease, data, 10)])
    assert isinstance(gap, OffsetGap) and gap.metadata["expected"] == "0"
    assert await _points(db) == []


async def test_an_ended_lease_is_refused_and_the_others_in_the_batch_are_not(db: Database) -> None:
    """S2."""
    ended, data = await _lease(db), _metrics([1])
    await _end(db, ended)
    current = await _lease(db, attempt=2)
    foreign = replace(_stretch(current, data), run_id="another")
    lost, stored, other = await append_ranges(db, [_stretch(ended, data), _stretch(current, data), foreign])
    assert isinstance(lost, LeaseLost) and isinstance(other, LeaseLost) and stored == len(data)
    assert await _points(db) == [(1, 0.5)]


async def test_nothing_comes_before_the_first_write(db: Database) -> None:
    """S6, F9: events of an attempt whose start a failover lost wait until the start is reported again."""
    lease, data = await _lease(db), _metrics([1])
    async with db.connection() as conn:
        await conn.execute("UPDATE leases SET start_time = NULL")
    (refused,) = await append_ranges(db, [_stretch(lease, data)])
    assert isinstance(refused, StartMissing)
    assert await _points(db) == []


async def test_half_a_line_waits_for_its_end(db: Database) -> None:
    lease, data = await _lease(db), _metrics([1, 2])
    cut = len(data) - 5
    (stored,) = await append_ranges(db, [_stretch(lease, data[:cut])])
    assert stored == len(data) // 2
    assert await append_ranges(db, [_stretch(lease, data[stored:], stored)]) == [len(data)]
    assert await append_ranges(db, [_stretch(lease, b"no end", len(data))]) == [len(data)]
    assert await _points(db) == [(1, 0.5), (2, 1.0)]


async def test_bad_and_unsent_lines_are_counted_named_and_passed(db: Database) -> None:
    lease = await _lease(db)
    data = b"{torn\n" + _metrics([1]) + b"null\n"
    assert await append_ranges(db, [_stretch(lease, data, skipped_bytes=1000)]) == [len(data) + 1000]
    ((kind, text),) = await _history(db)
    assert kind == "dropped" and text.startswith("3 lines") and "byte 0: not JSON" in text and "1000 bytes" in text
    async with db.connection() as conn:
        assert await conn.fetchval("SELECT dropped FROM cursors") == 3


async def test_a_store_that_takes_no_uploads_is_an_event_of_its_own(db: Database) -> None:
    lease = await _lease(db)
    data = b'{"type": "upload_failing", "level": "warning", "text": "the upload of step 4 to s3:// fails"}\n'
    assert await append_ranges(db, [_stretch(lease, data)]) == [len(data)]
    assert await _history(db) == [("upload_failing", "the upload of step 4 to s3:// fails")]


async def test_a_run_learns_progress_pins_messages_and_values_that_json_lacks(db: Database) -> None:
    lease = await _lease(db)
    rows: list[dict[str, Any]] = [
        {"type": "progress", "step": 3, "total": 9, "epoch": 0.5},
        {"type": "metric", "step": 4, "values": {"loss": "NaN", "lr": 0.1}},
        {"type": "pin", "name": "model", "value": "first"},
        {"type": "message", "level": "warning", "text": "nul \x00 and half a pair \ud800"},
    ]
    await append_ranges(db, [_stretch(lease, _lines(rows))])
    again = _lines([{"type": "pin", "name": "model", "value": "second"}])
    await append_ranges(db, [_stretch(lease, again, len(_lines(rows)))])
    async with db.connection() as conn:
        run = await conn.fetchrow("SELECT step, total, epoch, metrics, pins FROM runs")
    assert tuple(run) == (4, 9, 0.5, {"loss": "NaN", "lr": 0.1}, {"model": "first"})
    assert [kind for kind, _ in await _history(db)] == ["message", "pinned"]
    assert math.isnan((await _points(db))[0][1])


async def test_logs_are_cut_anywhere(db: Database) -> None:
    lease = await _lease(db)
    for offset, data in ((0, b"hel"), (1, b"ello w"), (0, b"hello w"), (7, b"orld")):
        await append_ranges(db, [_stretch(lease, data, offset, "stdout")])
    async with db.connection() as conn:
        rows = await conn.fetch("SELECT offset_bytes, data FROM log_chunks ORDER BY id")
    assert [tuple(row) for row in rows] == [(0, b"hel"), (3, b"lo w"), (7, b"orld")]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), max_size=25))
def _check_cuts(runner: asyncio.Runner, db: Database, seed: int, pieces: list[tuple[int, int]]) -> None:
    run = f"r{seed}-{uuid.uuid4().hex}"
    runner.run(_resend(db, run, pieces, random.Random(seed)))


async def _resend(db: Database, run: str, pieces: list[tuple[int, int]], dice: random.Random) -> None:
    """Send any byte ranges of whole lines in any order and batches, then all of it once more."""
    lease, rows = await _lease(db, run), [_metrics([step]) for step in range(30)]
    starts = [sum(map(len, rows[:n])) for n in range(31)]
    stretches = [
        ByteRange(run, lease, 0, "events", starts[first], b"".join(rows[first : first + count]))
        for first, count in pieces
    ]
    while stretches:
        size = dice.randint(1, len(stretches))
        answers: list[AppendResult | None] = await append_ranges(db, stretches[:size])
        assert all(isinstance(answer, OffsetGap) or answer in starts for answer in answers)
        stretches = stretches[size:]
    assert await append_ranges(db, [ByteRange(run, lease, 0, "events", 0, b"".join(rows))]) == [starts[-1]]
    assert await _points(db, run) == [(step, step / 2) for step in range(30)]


def test_however_it_is_cut_doubled_and_reordered_each_line_counts_once(postgres_server: postgres.Cluster) -> None:
    """S7, F17."""
    with asyncio.Runner() as runner:
        clone = cloned(postgres_server)
        connected = connections.connect_database(runner.run(clone.__aenter__()))
        try:
            _check_cuts(runner, runner.run(connected.__aenter__()))
        finally:
            runner.run(connected.__aexit__(None, None, None))
            runner.run(clone.__aexit__(None, None, None))


# Through gRPC


def _request(lease: uuid.UUID, data: bytes, offset: int = 0, source: str = "events") -> agents_pb2.AppendEventsRequest:
    return agents_pb2.AppendEventsRequest(lease=f"runs/r/leases/{lease}", source=source, offset=offset, data=data)


async def _send(
    replica: RunningCoordinator, *requests: agents_pb2.AppendEventsRequest
) -> list[agents_pb2.AppendEventsResponse]:
    call = replica.agents.AppendEvents(iter(requests), timeout=90)
    return [response async for response in call]


async def test_a_stream_answers_in_order_and_goes_on_after_a_refusal(
    coordinator: RunningCoordinator, db: Database
) -> None:
    lease, data = await _lease(db), _metrics([1])
    lost = uuid.uuid4()
    answers = await _send(
        coordinator,
        _request(lease, data),
        _request(lost, data),
        _request(lease, data, 999),
        _request(lease, b"out", 0, "stdout"),
    )
    assert [answer.WhichOneof("result") for answer in answers] == ["acked_offset", "refused", "refused", "acked_offset"]
    assert isinstance(from_status(answers[1].refused), LeaseLost)
    gap = from_status(answers[2].refused)
    assert isinstance(gap, OffsetGap) and gap.metadata["expected"] == str(len(data))
    assert [answers[0].acked_offset, answers[3].acked_offset] == [len(data), 3]


async def test_a_wrong_request_ends_its_stream_only(coordinator: RunningCoordinator, db: Database) -> None:
    lease = await _lease(db)
    with pytest.raises(grpc.RpcError) as wrong:
        await _send(coordinator, _request(lease, b"x", 0, "diary"))
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await _send(coordinator, _request(lease, b"x", 0, "stdout")))[0].acked_offset == 1


async def test_many_streams_at_once_each_line_once(coordinator: RunningCoordinator, db: Database) -> None:
    lease, rows = await _lease(db), [_metrics([step]) for step in range(200)]
    requests, offset = [], 0
    for row in rows:
        requests.append(_request(lease, row, offset))
        offset += len(row)
    await asyncio.gather(*(_send(coordinator, *requests) for _ in range(4)))
    (answer,) = await _send(coordinator, _request(lease, b"".join(rows)))
    assert answer.acked_offset == offset
    assert await _points(db) == [(step, step / 2) for step in range(200)]


# Reading


async def _curve(replica: RunningCoordinator, **request: Any) -> list[tuple[int, list[int], bool]]:
    call = replica.runs.ReadMetrics(runs_pb2.ReadMetricsRequest(name="runs/r", **request), timeout=90)
    return [(stretch.attempt, list(stretch.steps), stretch.superseded) async for stretch in call]


async def test_the_curve_is_one_curve(coordinator: RunningCoordinator, db: Database) -> None:
    """S7: points beyond the resume step are kept, marked, and not shown."""
    first = await _lease(db)
    await append_ranges(
        db, [_stretch(first, _metrics([1, 2])), _stretch(first, _metrics([3, 4]), len(_metrics([1, 2])))]
    )
    await _end(db, first)
    async with db.connection() as conn:
        await conn.execute("UPDATE leases SET kept_until_step = 3 WHERE id = $1", first)
    await append_ranges(db, [_stretch(await _lease(db, attempt=2), _metrics([4, 5]))])
    assert await _curve(coordinator) == [(1, [1, 2, 3], False), (2, [4, 5], False)]
    assert await _curve(coordinator, after_step=2, metrics=["loss"]) == [(1, [3], False), (2, [4, 5], False)]
    assert (1, [4], True) in await _curve(coordinator, include_superseded=True)
    assert await _curve(coordinator, metrics=["accuracy"]) == []


def _sample(step: int, kind: str = "prompt", **more: Any) -> dict[str, Any]:
    return {"type": "sample", "step": step, "kind": kind, "prompt": "2 + 2", "completion": str(step), **more}


async def _samples(replica: RunningCoordinator, **request: Any) -> list[tuple[int, str, bool]]:
    call = replica.runs.ReadSamples(runs_pb2.ReadSamplesRequest(name="runs/r", **request), timeout=90)
    return [(each.step, each.completion, each.superseded) async for reply in call for each in reply.samples]


async def test_samples_once_and_on_the_curve(coordinator: RunningCoordinator, db: Database) -> None:
    """S7: as points are, those of steps that were trained again are kept, marked, and not shown."""
    first, data = await _lease(db), _lines([_sample(10), _sample(20, "rollout", rewards={"a": 0.5}), _sample(30)])
    assert await append_ranges(db, [_stretch(first, data)] * 2) == [len(data)] * 2
    await _end(db, first)
    async with db.connection() as conn:
        await conn.execute("UPDATE leases SET kept_until_step = 20 WHERE id = $1", first)
    again = [_sample(30, completion="nul \x00"), *(_sample(40, completion=str(n)) for n in range(20))]
    await append_ranges(db, [_stretch(await _lease(db, attempt=2), _lines(again))])
    last = [(40, str(n), False) for n in range(20)]
    assert await _samples(coordinator) == [(10, "10", False), (20, "20", False), (30, "nul \ufffd", False), *last]
    assert await _samples(coordinator, last_steps=1) == last
    assert len(await _samples(coordinator, last_steps=2)) == 21 and len(await _samples(coordinator, last_steps=9)) == 23
    assert await _samples(coordinator, kind="rollout", last_steps=1) == [(20, "20", False)]
    assert await _samples(coordinator, from_step=30, to_step=30) == [(30, "nul \ufffd", False)]
    assert (30, "30", True) in await _samples(coordinator, include_superseded=True)
    with pytest.raises(grpc.RpcError) as wrong:
        await _samples(coordinator, kind="joke")
    assert "prompt, rollout" in (wrong.value.details() or "")


async def test_how_an_attempt_goes_on_is_in_its_history_and_part_of_it(
    coordinator: RunningCoordinator, db: Database
) -> None:
    reasons = ["torch was 2.12.1 and is 2.13.0", "nul \x00"]
    line = {"type": "resume", "step": 12, "fidelity": "close", "reasons": reasons}
    lease_id, data = await _lease(db), _lines([line])
    assert await append_ranges(db, [_stretch(lease_id, data)] * 2) == [len(data)] * 2
    listed = await coordinator.runs.ListAttempts(runs_pb2.ListAttemptsRequest(name="runs/r"), timeout=90)
    [attempt] = listed.attempts
    said = ["torch was 2.12.1 and is 2.13.0", "nul \ufffd"]
    assert (attempt.fidelity, list(attempt.fidelity_reasons)) == (runs_pb2.Attempt.CLOSE, said)
    async with db.connection() as conn:
        told = await conn.fetch("SELECT message, level, details FROM run_events WHERE kind = 'message'")
    assert [(row["message"], row["level"]) for row in told] == [
        ("resumes from step 12: close; torch was 2.12.1 and is 2.13.0; nul \ufffd", "warning")
    ]
    assert told[0]["details"]["fidelity"] == "close" and told[0]["details"]["step"] == 12


async def _logs(replica: RunningCoordinator, **request: Any) -> bytes:
    call = replica.runs.ReadLogs(runs_pb2.ReadLogsRequest(name="runs/r", **request), timeout=90)
    return b"".join([piece.data async for piece in call])


async def test_logs_whole_by_source_and_by_their_last_lines(coordinator: RunningCoordinator, db: Database) -> None:
    lease = await _lease(db)
    printed = b"".join(b"line %d\n" % n for n in range(100))
    for offset in range(0, len(printed), 7):
        await append_ranges(db, [_stretch(lease, printed[offset : offset + 7], offset, "stdout")])
    await append_ranges(db, [_stretch(lease, b"oh\n", 0, "stderr")])
    assert await _logs(coordinator, sources=["stdout"]) == printed
    assert await _logs(coordinator, tail_lines=3) == b"line 98\nline 99\noh\n"
    assert await _logs(coordinator, tail_lines=1000) == printed + b"oh\n"
    assert await _logs(coordinator, attempt=2) == b""


async def _piece(call: Any) -> bytes:
    return bytes((await call.read()).data)


async def test_logs_are_followed_until_the_run_ends(coordinator: RunningCoordinator, db: Database) -> None:
    lease = await _lease(db)
    await append_ranges(db, [_stretch(lease, b"one\n", 0, "stdout")])
    call = coordinator.runs.ReadLogs(runs_pb2.ReadLogsRequest(name="runs/r", follow=True), timeout=90)
    assert await _piece(call) == b"one\n"
    await append_ranges(db, [_stretch(lease, b"two\n", 4, "stdout")])
    assert await _piece(call) == b"two\n"
    async with db.transaction() as conn:
        await conn.execute("UPDATE runs SET state = 'succeeded' WHERE id = 'r'")
        await conn.execute("SELECT pg_notify('relay_runs', 'r')")
    assert await call.read() is grpc.aio.EOF


def _say(*texts: str) -> bytes:
    return _lines({"type": "message", "text": text} for text in texts)


async def test_a_watcher_goes_on_at_another_replica(
    coordinator: RunningCoordinator, coordinator_config: Any, tmp_path: Any, db: Database
) -> None:
    lease = await _lease(db)
    await append_ranges(db, [_stretch(lease, _say("a", "b"))])
    async with _watching(coordinator, 0) as events:
        assert [(await anext(events)).text for _ in range(2)] == ["a", "b"]
    async with (
        serving(replace(coordinator_config, data_dir=tmp_path / "second")) as second,
        _watching(second, 1) as events,
    ):
        assert (await anext(events)).sequence == 2
        await _send(coordinator, _request(lease, _say("c"), len(_say("a", "b"))))
        event = await anext(events)
        assert (event.sequence, event.text, event.lease) == (3, "c", f"runs/r/leases/{lease}")


@asynccontextmanager
async def _watching(replica: RunningCoordinator, after: int) -> AsyncIterator[AsyncIterator[runs_pb2.RunEvent]]:
    call = replica.runs.WatchRun(runs_pb2.WatchRunRequest(name="runs/r", after_sequence=after), timeout=90)

    async def events() -> AsyncIterator[runs_pb2.RunEvent]:
        async for response in call:
            if response.HasField("event"):
                yield response.event

    yield events()
    call.cancel()


async def test_watching_tells_progress_and_ends_with_the_run(coordinator: RunningCoordinator, db: Database) -> None:
    lease = await _lease(db)
    await append_ranges(db, [_stretch(lease, _metrics([7]))])
    async with db.transaction() as conn:
        await conn.execute("UPDATE runs SET state = 'failed' WHERE id = 'r'")
    call = coordinator.runs.WatchRun(runs_pb2.WatchRunRequest(name="runs/r"), timeout=90)
    (response,) = [response async for response in call]
    assert (response.progress.step, dict(response.progress.metrics)) == (7, {"loss": 3.5})


async def test_an_unknown_run_is_said_to_be_unknown(coordinator: RunningCoordinator) -> None:
    with pytest.raises(grpc.RpcError) as unknown:
        await _curve(coordinator)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_database_that_goes_away_is_unavailable_and_comes_back(
    coordinator: RunningCoordinator, db: Database
) -> None:
    """F7, in small: connections cut while a stream is open."""
    lease, data = await _lease(db), _metrics([1])
    connection = await asyncpg.connect(coordinator.database_url)
    try:
        await connection.execute(
            """SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
               WHERE pid <> pg_backend_pid() AND datname = current_database()"""
        )
    finally:
        await connection.close()
    async with asyncio.timeout(60):
        while True:
            try:
                assert (await _send(coordinator, _request(lease, data)))[0].acked_offset == len(data)
                break
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with connections.connect_database(coordinator.database_url) as fresh:
        assert await _points(fresh) == [(1, 0.5)]

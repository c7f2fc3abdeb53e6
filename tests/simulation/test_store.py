"""What can happen to a simulated database besides commands: processes die, it goes away, it becomes another one."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import UUID

import asyncpg
import pytest

from coordinator.background import planner, reaper
from coordinator.commands import runs as commands
from coordinator.database.connections import DatabaseAway
from coordinator.lifecycle import Policy
from coordinator.rpc.sessions import HeartbeatBatcher, NumberedHeartbeat, Reply, Sessions
from coordinator.store import deployment, history, leases, planning, runs
from coordinator.store.runs import RunDefinition
from coordinator.values import Heartbeat, Hello, Readiness, Submission
from relay.timing import DEFAULT
from tests.simulation.store.database import Moment, SimulatedDatabase
from tests.simulation.store.storage import Changed, Storage
from tests.simulation.traces import Artifacts, Trace
from tests.simulation.twins import outcome

ROOT = Path(__file__).parents[2]
ORDER = RunDefinition({}, (), "digest")


@pytest.fixture
def storage() -> Storage:
    """An empty one, whose clock stands still."""
    return Storage(now=lambda: datetime(2026, 1, 1, tzinfo=UTC), random=Random(1))


@pytest.fixture
def db(storage: Storage) -> SimulatedDatabase:
    """One process's."""
    return SimulatedDatabase(storage)


@pytest.fixture
async def run(db: SimulatedDatabase) -> str:
    """One that is committed."""
    async with db.connection() as conn:
        await runs.add(conn, "r", ORDER, {})
    return "r"


def ids(storage: Storage, table: str = "runs") -> list[str]:
    return [row["id"] for row in storage.rows(table)]


async def blocked(db: SimulatedDatabase, run_id: str) -> asyncio.Task[None]:
    """Yield once a transaction waits for a run's row."""

    async def lock() -> None:
        async with db.transaction() as conn:
            await runs.lock(conn, run_id)

    task = asyncio.create_task(lock())
    while not db.storage.waiting:  # the next turn of the loop at the latest
        await asyncio.sleep(0)
    return task


async def test_a_block_that_raises_leaves_nothing(storage: Storage, db: SimulatedDatabase, run: str) -> None:
    async with db.notifications.subscribe("relay_queue") as woken:
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as conn:
                await runs.add(conn, "s", ORDER, {})
                await runs.count_attempt(conn, run, 7)
                await planning.wake(conn)
                raise ZeroDivisionError
        assert ids(storage) == [run] and storage.tables["runs"][run]["attempts"] == 0
        assert not woken.is_set() and not storage.locks


async def test_a_commit_tells_listeners_and_observers_what_it_changed(
    storage: Storage, db: SimulatedDatabase, run: str
) -> None:
    seen: list[Changed] = []
    storage.observers.append(seen.extend)
    other = SimulatedDatabase(storage)
    async with (
        other.notifications.subscribe("relay_runs", run) as mine,
        other.notifications.subscribe("relay_runs", "other") as not_mine,
    ):
        async with db.transaction() as conn:
            await history.record(conn, run, "message", "hello", state="queued")
            assert not seen and not mine.is_set()
        assert mine.is_set() and not not_mine.is_set()
    assert [(change.table, change.before is None) for change in seen] == [("runs", False), ("run_events", True)]


async def test_a_process_that_dies_lets_go_of_all_it_had(storage: Storage, db: SimulatedDatabase, run: str) -> None:
    """F5."""
    other = SimulatedDatabase(storage)
    with pytest.raises(DatabaseAway):
        async with other.dedicated() as leader, other.transaction() as conn:
            assert await deployment.try_lead(leader, 1)
            await runs.count_attempt(conn, run, 7)
            task = await blocked(db, run)
            other.kill()
            await task
            async with db.dedicated() as next_leader:
                assert await deployment.try_lead(next_leader, 1)
            await runs.count_attempt(conn, run, 8)
    assert storage.tables["runs"][run]["attempts"] == 0
    with pytest.raises(DatabaseAway):
        await other.ping()


async def test_a_database_that_was_away_has_lost_its_connections(
    storage: Storage, db: SimulatedDatabase, run: str
) -> None:
    """F7: what was committed is there; who listened is woken; who led leads no more."""
    async with db.dedicated() as leader, db.notifications.subscribe("relay_queue") as woken:
        await deployment.try_lead(leader, 1)
        with pytest.raises(DatabaseAway):
            async with db.transaction() as conn:
                await runs.count_attempt(conn, run, 7)
                storage.away = True
                with pytest.raises(DatabaseAway):
                    await db.ping()
                storage.away = False
        assert woken.is_set()
        with pytest.raises(DatabaseAway):
            await deployment.check_leadership(leader)
    await db.ping()
    assert storage.tables["runs"][run]["attempts"] == 0


async def test_a_commit_whose_answer_is_lost_has_been_made(storage: Storage) -> None:
    """F8."""

    async def pause(moment: Moment) -> None:
        if moment is Moment.COMMITTED:
            raise DatabaseAway("cut")

    with pytest.raises(DatabaseAway):
        async with SimulatedDatabase(storage, pause).transaction() as conn:
            await runs.add(conn, "r", ORDER, {})
    assert ids(storage) == ["r"]


async def test_a_restored_database_is_as_it_was_and_draws_no_id_again(
    storage: Storage, db: SimulatedDatabase, run: str
) -> None:
    """F9, S1."""
    snapshot = storage.snapshot()
    drawn = []
    for _ in range(2):
        async with db.transaction() as conn:
            drawn.append(await leases.add(conn, run, 1, Policy.CONTINUE))
        with pytest.raises(asyncpg.UniqueViolationError):
            async with db.transaction() as conn:
                await leases.add(conn, run, 2, Policy.CONTINUE)
        storage.restore(snapshot)
        assert not storage.rows("leases")
    assert len(set(drawn)) == 2


async def test_who_waits_too_long_for_a_lock_gives_up(storage: Storage, db: SimulatedDatabase, run: str) -> None:
    storage.lock_timeout = 0.0
    async with db.transaction() as conn:
        await runs.lock(conn, run)
        with pytest.raises(DatabaseAway, match="lock timeout"):
            await (await blocked(db, run))
    assert not storage.locks and not storage.waiting and not storage.open


async def test_those_who_wait_get_the_row_in_their_order(storage: Storage, db: SimulatedDatabase, run: str) -> None:
    order: list[int] = []

    async def lock(number: int) -> None:
        async with db.transaction() as conn:
            await runs.lock(conn, run)
            order.append(number)

    async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        conn = await stack.enter_async_context(db.transaction())
        await runs.lock(conn, run)
        tasks = [group.create_task(lock(number)) for number in range(4)]
        while len(storage.waiting) < len(tasks):  # a turn of the loop
            await asyncio.sleep(0)
        tasks[1].cancel()
    assert order == [0, 2, 3]


async def test_of_two_who_wait_for_each_other_one_gives_up(storage: Storage, db: SimulatedDatabase, run: str) -> None:
    async with db.connection() as conn:
        await runs.add(conn, "s", ORDER, {})
    with pytest.raises(DatabaseAway, match="deadlock"):
        async with db.transaction() as conn:
            await runs.lock(conn, run)
            task = asyncio.create_task(_both(db, "s", run))
            while not storage.waiting:  # a turn of the loop
                await asyncio.sleep(0)
            await runs.lock(conn, "s")
    await task
    assert storage.deadlocks == 1 and not storage.locks


async def _both(db: SimulatedDatabase, *run_ids: str) -> None:
    async with db.transaction() as conn:
        for run_id in run_ids:
            await runs.lock(conn, run_id)


async def test_a_transaction_in_which_something_failed_does_nothing_more(db: SimulatedDatabase, run: str) -> None:
    async with db.transaction() as conn:
        await leases.add(conn, run, 1, Policy.CONTINUE)
        with pytest.raises(asyncpg.UniqueViolationError):
            await leases.add(conn, run, 2, Policy.CONTINUE)
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await runs.count_attempt(conn, run, 1)
    assert not db.storage.rows("leases")


async def test_who_is_deaf_hears_afterwards_that_something_was_missed(db: SimulatedDatabase) -> None:
    async with db.notifications.subscribe("relay_queue") as woken, db.connection() as conn:
        db.notifications.cut_off = True
        await planning.wake(conn)
        assert not woken.is_set()
        db.notifications.cut_off = False
        assert woken.is_set()


async def test_the_coordinators_services_run_on_it(db: SimulatedDatabase) -> None:
    """L4: a run that is submitted is pushed to its agent, by way of the planner."""
    heartbeats = HeartbeatBatcher(db, DEFAULT)
    sessions = Sessions(db, DEFAULT, heartbeats)
    hello = Hello(
        agent="a", instance_id="1", boot_id="boot", deployment_id="", capability={}, labels={}, slots=(0,), held=(),
        readiness=Readiness(),
    )  # fmt: skip
    submission = Submission(
        run_id="r", request_id="", spec={"version": "relay/v1", "method": "command", "command": ["true"]}, inputs=(),
        provenance={},
    )  # fmt: skip
    async with asyncio.TaskGroup() as group, asyncio.timeout(60):
        services = (
            heartbeats.run(),
            planner.plan_forever(db, DEFAULT),
            reaper.reap_forever(db, DEFAULT, monotonic=lambda: 0.0),
        )
        tasks = [group.create_task(service) for service in services]
        async with sessions.open(hello) as session, aclosing(session.messages(silence())) as messages:
            assert isinstance(first := await anext(messages), Reply) and not first.desired.leases
            await commands.create(db, Artifacts(), submission, DEFAULT.ttl)
            assert isinstance(told := await anext(messages), Reply)
            assert [lease.run_id for lease in told.desired.leases] == ["r"]
        for task in tasks:
            task.cancel()


async def silence() -> AsyncIterator[NumberedHeartbeat]:
    """No heartbeat ever comes."""
    await asyncio.Event().wait()
    yield NumberedHeartbeat(0, Heartbeat(agent="a", session_id=UUID(int=0), held=(), readiness=Readiness()))


async def trace_digest(seed: int) -> str:
    """Of all rows that a trace leaves."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    storage = Storage(now=lambda: now[0], random=Random(seed))
    db, trace = SimulatedDatabase(storage), Trace(Random(seed), storage)
    for _ in range(150):
        await outcome(trace.act()[1](db))
        now[0] += timedelta(seconds=trace.dice.choice([0, 0.1, 1, 2]))
    return hashlib.sha256(repr(storage.tables).encode()).hexdigest()


def test_a_seed_decides_all_of_it_whatever_the_hashes_are() -> None:
    code = "import asyncio; from tests.simulation.test_store import trace_digest; print(asyncio.run(trace_digest(3)))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        for hashes in ("1", "2")
    }
    assert len(found) == 1

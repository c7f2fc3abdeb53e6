"""One interleaving each, on a real database and without a coordinator that acts on its own."""

import asyncio
import threading
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest

from coordinator import scheduling
from coordinator.artifacts.folder import FolderArtifacts
from coordinator.background import reaper
from coordinator.background.planner import plan_once
from coordinator.commands import leases, runs, sessions
from coordinator.database.connections import Database, DatabaseAway, DatabaseTimeouts, connect_database
from coordinator.database.postgres import Cluster
from coordinator.store import checkpoints, planning
from coordinator.store import leases as stored_leases
from coordinator.values import Heartbeat, HeldPlace, Hello, Readiness, Submission
from relay.errors import IdentityInUse
from relay.timing import DEFAULT

TTL = DEFAULT.ttl


@dataclass
class Stage:
    """A database, and the commands as replicas give them."""

    db: Database
    blobs: FolderArtifacts

    async def submit(self, name: str = "r", **lifecycle: str) -> None:
        spec = {"version": "relay/v1", "method": "command", "command": ["true"], "name": name, "lifecycle": lifecycle}
        submission = Submission(run_id=name, request_id=name, spec=spec, inputs=(), provenance={})
        await runs.create(self.db, self.blobs, submission, TTL)

    async def hello(self, agent: str = "a", *, boot: str = "boot-1", slots: tuple[int, ...] = (0,)) -> UUID:
        """Opens a session that holds nothing."""
        hello = Hello(
            agent=agent, instance_id=uuid.uuid4().hex, boot_id=boot, deployment_id="", capability={}, labels={},
            slots=slots, held=(), readiness=Readiness(),
        )  # fmt: skip
        return (await sessions.open_session(self.db, hello, DEFAULT)).session_id

    async def granted(self, session: UUID, agent: str = "a") -> HeldPlace:
        """Plans, and lists what that gives the agent."""
        await plan_once(self.db, DEFAULT)
        desired = (await sessions.read_desired_state(self.db, [agent]))[agent]
        [lease] = desired.leases
        held = HeldPlace(lease.lease_id, lease.node, "running", lease.slots)
        await sessions.record_heartbeats(self.db, [pulse(session, held, agent=agent)], TTL)
        return held

    async def execute(self, statement: str) -> None:
        async with self.db.connection() as conn:
            await conn.execute(statement)

    async def value(self, query: str) -> Any:
        async with self.db.connection() as conn:
            return await conn.fetchval(query)


def pulse(session: UUID, *held: HeldPlace, agent: str = "a") -> Heartbeat:
    return Heartbeat(agent=agent, session_id=session, held=held, readiness=Readiness())


@pytest.fixture
def stage(db: Database, tmp_path: Path) -> Stage:
    """Nothing in it yet."""
    return Stage(db, FolderArtifacts(tmp_path, limit=1 << 30))


async def blocked(conn: asyncpg.Connection, act: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Begins the act, and returns once it waits for a lock that `conn` has, or is over."""
    task = asyncio.create_task(act)
    query = "SELECT count(*) FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    async with asyncio.timeout(60):
        while not task.done() and not await conn.fetchval(query):
            pass
    return task


async def test_a_renewal_that_is_being_written_just_now_counts(stage: Stage) -> None:
    """The reaper looked a moment too early: it waits for the heartbeat's transaction, and decides by its result."""
    session = await stage.hello()
    await stage.submit(on_disconnect="stop")
    held = await stage.granted(session)
    await stage.execute("UPDATE places SET expire_time = clock_timestamp() - interval '1 s'")
    async with stage.db.transaction() as conn:
        await stored_leases.renew(conn, [("a", session, held)], TTL)
        lapsing = await blocked(conn, leases.lapse(stage.db, held.lease_id))
    assert await lapsing is False
    assert await stage.value("SELECT state FROM runs") == "running"


async def test_a_holder_that_is_back_is_not_robbed_before_its_lapse_is_taken_back(stage: Stage) -> None:
    """Its places are renewed in one transaction, the lapse is taken back in the next; a grant comes between."""
    session = await stage.hello()
    await stage.submit()
    held = await stage.granted(session)
    await stage.execute("UPDATE places SET expire_time = clock_timestamp() - interval '1 s'")
    assert await leases.lapse(stage.db, held.lease_id)
    await stage.hello("b")
    planned = scheduling.Grant("r", (scheduling.Placement("b", (0,), await stage.value(SESSION_OF_B)),))
    async with stage.db.transaction() as conn:
        await stored_leases.renew(conn, [("a", session, held)], TTL)
    assert await leases.grant(stage.db, planned, TTL) is None
    await plan_once(stage.db, DEFAULT)
    await sessions.record_heartbeats(stage.db, [pulse(session, held)], TTL)
    assert await stage.value("SELECT count(*) FROM leases") == 1
    assert await stage.value("SELECT state FROM leases") == "held"


SESSION_OF_B = "SELECT session_id FROM agents WHERE name = 'b'"


async def test_a_host_that_has_said_hello_again_is_not_what_was_planned_with(stage: Stage) -> None:
    """A slot that was planned with is no longer there."""
    await stage.hello(slots=(0, 1))
    await stage.submit("one")
    await stage.submit("two")
    async with stage.db.connection() as conn:
        seen = await planning.read_snapshot(conn, TTL)
    grants = scheduling.plan(seen.queue, seen.fleet, seen.now).grants
    assert [grant.placements[0].slots for grant in grants] == [(0,), (1,)]
    await stage.hello(slots=(0,))
    assert [await leases.grant(stage.db, grant, TTL) for grant in grants] == [None, None]
    await plan_once(stage.db, DEFAULT)
    assert await stage.value("SELECT count(*) FROM leases") == 1


async def test_no_stop_run_is_granted_by_a_database_that_nobody_has_recognised_yet(stage: Stage) -> None:
    """F9, S3: the planner is sooner than the reaper after a failover."""
    await reaper.reap_once(stage.db, DEFAULT, None)
    await stage.hello()
    await stage.hello("b")
    await stage.execute("UPDATE deployment SET timeline = timeline + 1")
    await stage.submit("careful", on_disconnect="stop")
    await stage.submit("careless")
    await plan_once(stage.db, DEFAULT)
    assert await stage.value("SELECT array_agg(run_id) FROM leases") == ["careless"]


async def test_the_newest_checkpoint_is_the_latest_attempts_whatever_the_clock_said(stage: Stage) -> None:
    """F13, S5: the database's clock was set back between two attempts."""
    session = await stage.hello()
    await stage.submit()
    for step in (10, 20):
        held = await stage.granted(session)
        async with stage.db.transaction() as conn:
            await conn.execute(
                """INSERT INTO checkpoints (run_id, lease_id, attempt, step, complete)
                   SELECT run_id, id, attempt, $2, true FROM leases WHERE id = $1""",
                held.lease_id,
                step,
            )
        await sessions.record_heartbeats(stage.db, [pulse(session)], TTL)
    await stage.execute("UPDATE leases SET grant_time = grant_time - interval '1 hour' WHERE attempt = 2")
    async with stage.db.connection() as conn:
        assert [view.step for view in await checkpoints.list_resumable(conn, "r")] == [20, 10]
        assert [view.step for view in await checkpoints.list_of_run(conn, "r", superseded=True, removed=True)] == [
            10,
            20,
        ]


async def test_a_host_is_offered_a_bounded_number_of_checkpoints_and_those_it_can_reach(stage: Stage) -> None:
    """S6: thousands lie on the disk of a host that died, and one far back in a store."""
    session = await stage.hello()
    await stage.submit()
    held = await stage.granted(session)
    await stage.execute(
        f"""WITH made AS (INSERT INTO checkpoints (run_id, lease_id, attempt, step, complete)
                          SELECT 'r', '{held.lease_id}', 1, step, true FROM generate_series(1, 1000) AS step
                          RETURNING id, step),
                 parts AS (INSERT INTO checkpoint_parts SELECT id, 0, 'd', 1, 1 FROM made RETURNING checkpoint_id)
            INSERT INTO checkpoint_copies (checkpoint_id, node, store, uri)
            SELECT id, 0, 'host', 'host://agents/a' FROM made JOIN parts ON checkpoint_id = id
            UNION ALL SELECT id, 0, 'relay', 'relay://d' FROM made JOIN parts ON checkpoint_id = id WHERE step = 7"""
    )
    async with stage.db.connection() as conn:
        offered = [view.step for view in await checkpoints.list_resumable(conn, "r")]
        known = [view.step for view in await checkpoints.list_of_lease(conn, held.lease_id)]
    assert offered == [*range(1000, 900, -1), 7] and known == [*range(901, 1001)]


async def test_a_clock_set_back_keeps_no_run_and_no_host_waiting_for_it(stage: Stage) -> None:
    """F13: times that lie an hour ahead are not waited for."""
    await reaper.reap_once(stage.db, DEFAULT, None)
    await stage.hello()
    await stage.submit()
    await stage.execute("UPDATE deployment SET reaper_tick = reaper_tick + interval '1 hour'")
    await stage.execute("UPDATE agents SET heartbeat_time = heartbeat_time + interval '1 hour'")
    await stage.execute("UPDATE runs SET eligible_time = clock_timestamp() + interval '1 hour'")
    await reaper.reap_once(stage.db, DEFAULT, None)
    assert await stage.value("SELECT eligible_time < clock_timestamp() + interval '301 s' FROM runs")
    await stage.execute("UPDATE agents SET heartbeat_time = heartbeat_time - interval '11 s', connect_time = NULL")
    try:
        await stage.hello(boot="boot-2")
    except IdentityInUse:
        pytest.fail("the older session sends no heartbeats any more")


async def test_a_database_that_is_exchanged_is_away_and_then_listened_to_again(
    postgres_server: Cluster, database_url: str
) -> None:
    """F9: it accepts no connections, then it is gone, then it is there again. Every listener resumes."""
    name = urlsplit(database_url).path.lstrip("/")
    operator = await asyncpg.connect(postgres_server.url("postgres"))
    async with (
        connect_database(database_url) as db,
        db.notifications.subscribe("relay_queue") as woken,
        asyncio.timeout(60),
    ):
        await woken.wait()  # it listens
        await operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await operator.execute("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = $1", name)
        with pytest.raises(DatabaseAway):
            await db.ping()
        await operator.execute(f"ALTER DATABASE {name} RENAME TO {name}_old")
        with pytest.raises(DatabaseAway):
            await db.ping()
        woken.clear()
        await operator.execute(f"ALTER DATABASE {name}_old RENAME TO {name}")
        await operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await woken.wait()
        await db.ping()
    await operator.close()


async def test_a_goodbye_that_was_read_between_two_statements_is_a_database_that_is_away(
    postgres_server: Cluster, db: Database
) -> None:
    """F7: Postgres shuts down. Its last word has been read, the end of the line not yet; asyncpg trips over that."""

    async def terminate(pid: int) -> None:
        operator = await asyncpg.connect(postgres_server.url("postgres"))
        await operator.execute("SELECT pg_terminate_backend($1, 60000)", pid)
        await operator.close()

    with pytest.raises(DatabaseAway):
        async with db.connection() as conn:
            pid = await conn.fetchval("SELECT pg_backend_pid()")
            elsewhere = threading.Thread(target=lambda: asyncio.run(terminate(pid)))
            elsewhere.start()
            elsewhere.join()  # our own loop reads nothing meanwhile
            for _ in range(2):
                await asyncio.sleep(0)
            await conn.fetchval("SELECT 1")
    await db.ping()


async def test_a_leader_that_says_nothing_any_more_is_no_leader(database_url: str) -> None:
    """F5: its host lost power. No word comes, and Postgres alone would keep its lock for hours."""
    async with connect_database(database_url, timeouts=DatabaseTimeouts(idle=0.2)) as db, db.dedicated() as silent:
        await silent.execute("SELECT pg_advisory_lock(1)")
        ended = asyncio.Event()
        silent.add_termination_listener(lambda _: ended.set())
        async with asyncio.timeout(60):
            await ended.wait()
        async with db.dedicated() as next_leader:
            assert await next_leader.fetchval("SELECT pg_try_advisory_lock(1)")

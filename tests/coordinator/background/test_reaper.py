"""Lapsing by the database's clock, and the outages in which nothing lapses; failover and restore."""

import time
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest
from grpc import aio

from coordinator.background import reaper
from coordinator.background.reaper import ReaperLook
from coordinator.commands import leases
from coordinator.database.postgres import Cluster
from coordinator.store import leases as stored_leases
from relay.v1 import runs_pb2
from tests.coordinator.agent_client import SUCCEEDED, ScriptedAgent, connected
from tests.coordinator.fleet import World, reason

HELD, LAPSED = runs_pb2.Attempt.HELD, runs_pb2.Attempt.LAPSED


async def run_out(world: World) -> None:
    """All places are over."""
    await execute(world, "UPDATE places SET expire_time = clock_timestamp() - interval '1 second'")


async def execute(world: World, statement: str) -> None:
    async with world.db.connection() as conn:
        await conn.execute(statement)


async def held(world: World, *agents: ScriptedAgent) -> None:
    """One run on each agent."""
    for agent in agents:
        await world.submit(f"on-{agent.name}", resources={"allowed_hosts": [agent.name]})
        await agent.take()


async def state(world: World, name: str) -> runs_pb2.Attempt.State.ValueType:
    return (await world.run(f"on-{name}")).attempt.state


async def test_a_gap_in_the_reapers_own_tick_lets_nothing_lapse_for_a_ttl(world: World) -> None:
    """F6, F7: else a 30-second outage kills a fleet."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await held(world, a, b)
        async with world.db.transaction() as conn:
            # One transaction, so that the coordinator's own reaper finds both or neither.
            await conn.execute("UPDATE deployment SET reaper_tick = reaper_tick - interval '1 hour'")
            await conn.execute("UPDATE places SET expire_time = clock_timestamp() - interval '1 second'")
        await reaper.reap_once(world.db, world.config.timing, None)
        await reaper.reap_once(world.db, world.config.timing, None)
        assert (await state(world, "a"), await state(world, "b")) == (HELD, HELD)
        await a.heartbeat()
        await execute(world, "UPDATE deployment SET lapses_after = clock_timestamp()")
        await reaper.reap_once(world.db, world.config.timing, None)
        assert (await state(world, "a"), await state(world, "b")) == (HELD, LAPSED)


async def test_a_clock_that_leaps_while_the_reaper_looks_lets_nothing_lapse(world: World) -> None:
    """F13: the reaper has judged a moment, and what had not run out by then is judged again at its next tick."""
    async with connected(world.replica.agents, "a") as [a]:
        await held(world, a)
        async with world.db.transaction() as conn:
            judged = await conn.fetchval("SELECT clock_timestamp()")
            await conn.execute("UPDATE places SET expire_time = clock_timestamp()")
            await conn.execute("UPDATE deployment SET lapses_after = clock_timestamp() + interval '1 hour'")  # ours
            lease = await conn.fetchval("SELECT id FROM leases")
        async with world.db.transaction() as conn:
            assert await stored_leases.find_expired(conn, judged) == []
        assert not await leases.lapse(world.db, lease, judged)
        assert await state(world, "a") == HELD


async def test_an_outage_that_is_no_failover_withholds_no_stop_runs(world: World) -> None:
    """F6, F7: the database is the one it was, so no holder is unknown to it."""
    await reaper.reap_once(world.db, world.config.timing, None)
    async with world.db.transaction() as conn:
        await conn.execute("UPDATE deployment SET reaper_tick = reaper_tick - interval '1 hour'")
    await reaper.reap_once(world.db, world.config.timing, None)
    async with world.db.connection() as conn:
        row = await conn.fetchrow("SELECT * FROM deployment")
    assert row["lapses_after"] is not None and row["stop_grants_after"] is None


async def test_when_all_agents_are_silent_the_line_is_to_blame(world: World) -> None:
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await held(world, a, b)
        async with world.db.transaction() as conn:
            await conn.execute(
                """UPDATE agents SET heartbeat_time = heartbeat_time - interval '1 minute',
                                     connect_time = connect_time - interval '1 minute'"""
            )
            await conn.execute("UPDATE places SET expire_time = clock_timestamp() - interval '1 second'")
        await reaper.reap_once(world.db, world.config.timing, None)
        await b.heartbeat()
        await reaper.reap_once(world.db, world.config.timing, None)
        assert (await state(world, "a"), await state(world, "b")) == (HELD, HELD)


async def test_a_clock_that_jumps_lets_nothing_lapse(world: World) -> None:
    """F13."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await held(world, a, b)
        last = await reaper.reap_once(world.db, world.config.timing, None)
        jumped = ReaperLook(last.database - timedelta(hours=1), time.monotonic())
        await reaper.reap_once(world.db, world.config.timing, jumped)
        await run_out(world)
        await reaper.reap_once(world.db, world.config.timing, None)
        assert (await state(world, "a"), await state(world, "b")) == (HELD, HELD)


async def test_one_silent_host_among_others_lapses_and_its_run_goes_elsewhere_at_once(world: World) -> None:
    """L1."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await world.submit(resources={"prefer_hosts": ["a"]})
        first = await a.take()
        await world.expire(first.lease)
        assert (await b.take()).assignment.attempt == 2


async def test_after_a_failover_sessions_end_places_last_a_ttl_and_stop_runs_wait(world: World) -> None:
    """F9."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await held(world, a)
        async with world.db.transaction() as conn:
            await conn.execute("UPDATE deployment SET timeline = timeline + 1")
            await conn.execute("UPDATE places SET expire_time = clock_timestamp() - interval '1 second'")
        await reaper.reap_once(world.db, world.config.timing, None)
        with pytest.raises(aio.AioRpcError) as ended:
            await a.until(lambda _: False)
        assert ended.value.code().name == "UNAVAILABLE"
        await a.hello()
        assert (await a.heartbeat()).leases[0].lease in a.held
        assert await state(world, "a") == HELD
        b = ScriptedAgent(world.replica.agents, "b", instance=b.instance)
        await b.hello()
        await world.submit("careful", lifecycle={"on_disconnect": "stop"})
        await world.submit("careless")
        assert (await b.take()).assignment.run == "runs/careless"
        assert (await world.run("careful")).reason.startswith("not before")
        await execute(world, "UPDATE deployment SET stop_grants_after = clock_timestamp()")


async def test_in_a_restored_copy_every_lease_has_ended(world: World) -> None:
    """F9."""
    async with connected(world.replica.agents, "a") as [a]:
        await held(world, a)
        [lease] = a.held
        await execute(world, "UPDATE deployment SET system_identifier = 'another'")
        await reaper.reap_once(world.db, world.config.timing, None)
        with pytest.raises(aio.AioRpcError) as refused:
            await a.start(lease)
        assert reason(refused.value) == "LEASE_LOST"
        [attempt] = await world.attempts("on-a")
        assert attempt.reason == "the database was restored from a copy"
        async with world.db.connection() as conn:
            assert await conn.fetchval("SELECT system_identifier FROM deployment") != "another"


async def test_while_the_database_is_away_a_heartbeat_is_answered_with_wait(world: World) -> None:
    """F11: contact, no change."""
    async with connected(world.replica.agents, "a") as [a]:
        async with world.db.transaction() as conn:
            await conn.execute("LOCK TABLE agents IN ACCESS EXCLUSIVE MODE")  # it answers to nobody for a while
            assert await a.wait()
        assert (await a.heartbeat()).heartbeat_sequence == 2


async def test_a_database_that_comes_back_finds_all_as_it_was(world: World, postgres_server: Cluster) -> None:
    """F7: every connection is cut and none is taken for a while. No session ends, no attempt is lost."""
    name = urlsplit(world.config.database_url or "").path.lstrip("/")
    operator = await asyncpg.connect(postgres_server.url("postgres"))
    async with connected(world.replica.agents, "a") as [a]:
        await held(world, a)
        await operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await operator.execute("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = $1", name)
        assert await a.wait()
        with pytest.raises(aio.AioRpcError) as away:
            await world.run("on-a")
        assert away.value.code().name == "UNAVAILABLE"
        await operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert [lease.lease for lease in (await a.heartbeat()).leases] == list(a.held)
        assert await state(world, "a") == HELD
        await world.submit("next")
        [lease] = a.held
        await a.complete(lease, **SUCCEEDED)
        assert (await a.next_lease()).assignment.run == "runs/next"  # the planner leads again, and is listened to
    await operator.close()

"""What runs for ever: one replica at a time leads, and the next takes over."""

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from urllib.parse import urlsplit

import asyncpg
import pytest

from coordinator.artifacts.garbage_collection import CollectionSchedule
from coordinator.background.planner import TICK, plan_once
from coordinator.config import Config
from coordinator.database import migrate
from coordinator.database.connections import connect_database
from relay.timing import DEFAULT
from relay.v1 import artifacts_pb2, fleet_pb2
from storage.manifest import digest_bytes
from tests.conftest import serving
from tests.coordinator.agent_client import SUCCEEDED, failed
from tests.coordinator.agent_client import connected as agents_connected
from tests.coordinator.fleet import World


async def test_when_the_leading_replica_ends_the_other_plans(coordinator_config: Config) -> None:
    """F5: what is submitted afterwards is granted as before."""
    config = replace(coordinator_config, timing=DEFAULT)
    async with AsyncExitStack() as rest:
        async with serving(config):
            other = replace(config, data_dir=config.data_dir.with_name("other"))
            follower = await rest.enter_async_context(serving(other))
        db = await rest.enter_async_context(connect_database(config.database_url or ""))
        world = World(other, follower, db)
        async with agents_connected(follower.agents, "a") as [a]:
            await world.submit()
            assert (await a.take()).assignment.attempt == 1


async def test_the_planner_comes_back_when_a_run_may_be_tried_again(world: World) -> None:
    """S8: a run waits for a named time, and the planner knows it."""
    assert await plan_once(world.db, DEFAULT) == TICK
    async with agents_connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = await a.take()
        await a.complete(first.lease, **failed())
        assert 0 < await plan_once(world.db, DEFAULT) <= 2.1
        assert (await world.run()).reason.startswith("will be retried at")


async def test_a_silent_holder_is_named_as_the_reason(world: World) -> None:
    async with agents_connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        await world.expire(desired.lease)
        assert (await world.run()).reason == "no heartbeat from a; the run may be granted to another host"
        await a.heartbeat()
        assert (await world.run()).reason == ""


async def test_a_replica_collects_as_soon_as_it_leads(coordinator_config: Config) -> None:
    """It also schedules what is too old by then for deletion."""
    config = replace(coordinator_config, timing=DEFAULT, collection=CollectionSchedule(every=0.2, grace=0.0))
    async with serving(config) as replica, connect_database(config.database_url or "") as db:
        world = World(config, replica, db)
        async with agents_connected(replica.agents, "a") as [a]:
            await world.submit(checkpoint={"keep": {"last": 2, "max_age": "1h"}})
            lease = (await a.take()).lease
            await a.start(lease)
            for step in (10, 20):
                await a.save(lease, step)
            await a.complete(lease, **SUCCEEDED)
            async with db.connection() as conn:
                await conn.execute("UPDATE checkpoints SET create_time = create_time - interval '2 hours'")
            async with db.notifications.subscribe("relay_runs", "r") as told, asyncio.timeout(60):
                while ("removed", "step 10 scheduled for deletion: older than 1h") not in await world.history():
                    await told.wait()
                    told.clear()
        data = b"nobody names this"
        header = artifacts_pb2.PutBlobHeader(digest=digest_bytes(data), size=len(data))
        messages = [artifacts_pb2.PutBlobRequest(header=header), artifacts_pb2.PutBlobRequest(chunk=data)]
        await replica.artifacts.PutBlob(iter(messages))
        async with asyncio.timeout(60):
            while list((config.artifacts / "blobs").glob("??/*")):
                await replica.fleet.GetDeployment(fleet_pb2.GetDeploymentRequest())


async def test_a_replica_waits_for_a_database_that_goes_while_it_starts(
    coordinator_config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F6: a failover at that moment, or a busy server, ends no process."""
    url = coordinator_config.database_url or ""
    name = urlsplit(url).path[1:]
    operator = await asyncpg.connect(url, database="postgres")
    required, refusals, refused = migrate.require_head, [], asyncio.Event()

    async def require_and_go(url: str) -> None:
        await required(url)
        await operator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')

    def count(record: logging.LogRecord) -> None:
        if "out of reach" in record.getMessage():
            refusals.append(record)
        if len(refusals) == 2:
            refused.set()

    monkeypatch.setattr(migrate, "require_head", require_and_go)
    monkeypatch.setattr(caplog.handler, "emit", count)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_allow_connections(operator, name, refused))
            async with serving(coordinator_config) as replica:
                assert not (await replica.fleet.ListAgents(fleet_pb2.ListAgentsRequest())).agents
    finally:
        await operator.close()


async def _allow_connections(operator: asyncpg.Connection, name: str, after: asyncio.Event) -> None:
    await after.wait()
    await operator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

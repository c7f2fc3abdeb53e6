"""What runs for ever: one replica at a time leads, and the next takes over."""

from contextlib import AsyncExitStack
from dataclasses import replace

from coordinator.config import Config
from coordinator.database import connected
from coordinator.services.planner import TICK, plan_once
from relay.timing import DEFAULT
from tests.conftest import serving
from tests.coordinator.agent_client import connected as agents_connected
from tests.coordinator.agent_client import failed
from tests.coordinator.fleet import World


async def test_when_the_leading_replica_ends_the_other_plans(coordinator_config: Config) -> None:
    """F5: what is submitted afterwards is granted as before."""
    config = replace(coordinator_config, timing=DEFAULT)
    async with AsyncExitStack() as rest:
        async with serving(config):
            other = replace(config, data_dir=config.data_dir.with_name("other"))
            follower = await rest.enter_async_context(serving(other))
        db = await rest.enter_async_context(connected(config.database_url or ""))
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
        assert (await world.run()).reason.startswith("tried again at")


async def test_a_silent_holder_is_named_as_the_reason(world: World) -> None:
    async with agents_connected(world.replica.agents, "a") as [a]:
        await world.submit()
        wished = await a.take()
        await world.expire(wished.lease)
        assert (await world.run()).reason == "a is silent; the run may go elsewhere"
        await a.beat()
        assert (await world.run()).reason == ""

"""Slow lines, long ones and such as lose packets: heartbeats pass, and nobody is taken for dead (F12).

With the default timing: a line of two seconds each way is beyond the tests'.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.database import postgres
from relay.timing import DEFAULT
from relay.v1 import runs_pb2 as pb
from tests.conftest import cloned
from tests.end_to_end.fixtures import short_folder
from tests.end_to_end.fleet import Deployment, Fleet, Watched, deployed
from tests.faults.wire import available, wire
from tests.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(postgres_server: postgres.Cluster) -> AsyncIterator[Deployment]:
    """Two replicas with the default timing."""
    with short_folder() as folder:
        async with cloned(postgres_server) as database_url, deployed(Path(folder), database_url, "default") as made:
            yield made


async def lasts(seconds: float) -> None:
    """While a fault does."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, done.set_result, None)
    await done


async def is_untouched(run: Watched, steps: int) -> None:
    """It ended well at its first attempt, and never lapsed on the way."""
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures, ended.faults) == (1, 0, 0)
    assert pb.RunEvent.LAPSED not in [event.kind async for event in run.history()]
    await run.has_one_curve(steps)


async def test_heartbeats_pass_ten_megabytes_of_events(fleet: Fleet) -> None:
    """F12: at 64 kB/s. Behind the events a heartbeat would wait half a minute, and the session be given up at 10 s."""
    host = await fleet.host("a")
    run = await fleet.submit_gated(steps=101, save_every=1000, padding=100_000)
    fleet.proxy.bandwidth(64_000)
    await fleet.conductor.allow(100)
    await fleet.conductor.reached(100)
    await lasts(4 * DEFAULT.heartbeat)
    assert host.daemon is not None
    assert [line for line in host.daemon.lines if "session broken" in line] == []
    assert (await run.get()).progress.step < 100  # there is a backlog indeed
    fleet.proxy.heal()
    await fleet.conductor.allow(101)
    await is_untouched(run, 101)


async def test_two_seconds_each_way_and_a_thin_line(fleet: Fleet) -> None:
    """F12: for longer than a TTL, with a backlog."""
    await fleet.host("a")
    run = await fleet.submit_gated(steps=21, save_every=5, padding=100_000)
    fleet.proxy.delay(2.0)
    fleet.proxy.bandwidth(64_000)
    await fleet.conductor.allow(20)
    await fleet.conductor.reached(20)
    await lasts(DEFAULT.ttl + 5)
    fleet.proxy.heal()
    await fleet.conductor.allow(21)
    await is_untouched(run, 21)


@pytest.mark.skipif(not available(), reason="network namespaces and TUN devices need root on Linux")
async def test_three_packets_in_ten_are_lost(fleet: Fleet) -> None:
    """F12: for longer than a TTL."""
    upstreams = [replica.address for replica in fleet.deployment.replicas]
    async with wire(seed=12) as line, Proxy(upstreams, line.listener) as service:
        host = fleet.new_host("a", via=service.address, within=line.within)
        await host.start()
        run = await fleet.submit_gated(steps=21, save_every=5)
        line.loss = 0.3
        await fleet.conductor.allow(20)
        await fleet.conductor.reached(20)
        await lasts(DEFAULT.ttl + 5)
        assert line.dropped
        line.loss = 0.0
        await fleet.conductor.allow(21)
        await is_untouched(run, 21)
        await host.vanish()

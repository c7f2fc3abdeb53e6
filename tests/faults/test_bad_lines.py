"""Slow lines, long ones and such as lose packets: heartbeats pass, and nobody is taken for dead (F12).

With the default timing, which is made for such lines; only the throttled one uses the tests', to be sharper.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator import postgres
from relay.timing import DEFAULT, TEST
from relay.v1 import runs_pb2 as pb
from tests.conftest import cloned
from tests.end_to_end.fleet import Fleet, Watched, deployed, fleet_of
from tests.faults.wire import available, wire
from tests.proxy import Proxy

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture(loop_scope="module")
async def far_fleet(postgres_server: postgres.Cluster) -> AsyncIterator[Fleet]:
    """One with the default timing."""
    with tempfile.TemporaryDirectory(prefix="relay-e2e-") as one, tempfile.TemporaryDirectory(prefix="relay-") as two:
        async with (
            cloned(postgres_server) as url,
            deployed(Path(one), url, "default") as deployment,
            fleet_of(deployment, Path(two)) as made,
        ):
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
    """F12: at 64 kB/s, for several TTLs; the session is never given up."""
    host = await fleet.host("a")
    run = await fleet.submit_gated(steps=101, save_every=1000, padding=100_000)
    fleet.proxy.bandwidth(64_000)
    await fleet.conductor.allow(100)
    await fleet.conductor.reached(100)
    await lasts(4 * TEST.ttl)
    assert host.daemon is not None
    assert [line for line in host.daemon.lines if "session=" in line and "welcome" not in line] == []
    assert (await run.get()).progress.step < 100  # there is a backlog indeed
    fleet.proxy.heal()
    await fleet.conductor.allow(101)
    await is_untouched(run, 101)


async def test_two_seconds_each_way_and_a_thin_line(far_fleet: Fleet) -> None:
    """F12: for longer than a TTL, with a backlog."""
    await far_fleet.host("a")
    run = await far_fleet.submit_gated(steps=21, save_every=5, padding=100_000)
    far_fleet.proxy.delay(2.0)
    far_fleet.proxy.bandwidth(64_000)
    await far_fleet.conductor.allow(20)
    await far_fleet.conductor.reached(20)
    await lasts(DEFAULT.ttl + 5)
    far_fleet.proxy.heal()
    await far_fleet.conductor.allow(21)
    await is_untouched(run, 21)


@pytest.mark.skipif(not available(), reason="network namespaces and TUN devices need root on Linux")
async def test_three_packets_in_ten_are_lost(far_fleet: Fleet) -> None:
    """F12: for longer than a TTL."""
    upstreams = [replica.address for replica in far_fleet.deployment.replicas]
    async with wire(seed=12) as line, Proxy(upstreams, line.listener) as service:
        host = far_fleet.new_host("a", via=service.address, within=line.within)
        await host.start()
        run = await far_fleet.submit_gated(steps=21, save_every=5)
        line.loss = 0.3
        await far_fleet.conductor.allow(20)
        await far_fleet.conductor.reached(20)
        await lasts(DEFAULT.ttl + 5)
        assert line.dropped
        line.loss = 0.0
        await far_fleet.conductor.allow(21)
        await is_untouched(run, 21)
        await host.vanish()

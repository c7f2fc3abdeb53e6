"""Hosts out of reach: flapping and short outages change nothing, a long one costs the lease and no more (F10)."""

from __future__ import annotations

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind
from tests.faults.wire import available, wire
from tests.proxy import Proxy, Way

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]


async def test_a_cut_line_loses_nothing(fleet: Fleet) -> None:
    """F10: flapping and a black hole shorter than a lease change nothing at all (S7)."""
    await fleet.host("a")
    run = await fleet.submit_gated(steps=12, save_every=4)
    for step in range(1, 9):
        await fleet.conductor.allow(step)
        await fleet.conductor.reached(step)
        fleet.proxy.cut()
    fleet.proxy.blackhole()
    await fleet.conductor.allow(11)
    await fleet.conductor.reached(11)
    fleet.proxy.heal()
    await fleet.conductor.allow(12)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.faults) == (1, 0)
    assert fleet.conductor.steps_done_twice() == []
    await run.has_one_curve(12)


@pytest.mark.parametrize(("way", "policy"), [(Way.UP, "stop"), (Way.DOWN, "continue")])
async def test_a_host_cut_off_for_longer_than_its_lease(fleet: Fleet, way: Way, policy: str) -> None:
    """F10, F3: both ways or one, the host notices, another resumes from the head, and what comes late counts not."""
    async with Proxy([replica.address for replica in fleet.deployment.replicas]) as line:
        cut_off = await fleet.host("a", via=line.address)
        run = await fleet.submit_gated(steps=8, save_every=2, lifecycle={"on_disconnect": policy})
        await fleet.conductor.allow(3)
        await fleet.conductor.reached(3)
        await run.checkpoint(2)
        await fleet.host("b")
        line.blackhole(way)
        await run.until(lambda event: event.kind in (Kind.LAPSED, Kind.ENDED))
        assert cut_off.daemon is not None
        await cut_off.daemon.seen("session broken")
        assert (await fleet.conductor.called(2)).resumed_from == 2
        await fleet.conductor.allow(6)
        await fleet.conductor.reached(6, attempt=2)
        line.heal()
        await fleet.conductor.ended(await fleet.conductor.called(1))
        await fleet.conductor.allow(8)
        ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures) == (2, 0)
    await run.has_one_curve(8)


@pytest.mark.skipif(not available(), reason="network namespaces and TUN devices need root on Linux")
@pytest.mark.parametrize(("way", "policy"), [(Way.BOTH, "stop"), (Way.UP, "continue"), (Way.DOWN, "stop")])
async def test_packets_that_vanish(fleet: Fleet, way: Way, policy: str) -> None:
    """F10: as above, noticed only by missing replies, on a connection that had flapped before."""
    async with wire(seed=10) as line, Proxy([r.address for r in fleet.deployment.replicas], line.listener) as service:
        cut_off = fleet.new_host("a", via=service.address, within=line.within)
        await cut_off.start()
        run = await fleet.submit_gated(steps=8, save_every=2, lifecycle={"on_disconnect": policy})
        await fleet.conductor.called(1)  # a grant that met a closed line would lapse, and so would every later one
        for step in (1, 2, 3):
            line.closed = way
            await fleet.conductor.allow(step)
            await fleet.conductor.reached(step)
            line.closed = Way(0)
        await run.checkpoint(2)
        await fleet.host("b")
        line.closed = way
        await run.until(lambda event: event.kind in (Kind.LAPSED, Kind.ENDED))
        assert cut_off.daemon is not None
        await cut_off.daemon.seen("session broken")
        assert (await fleet.conductor.called(2)).resumed_from == 2
        await fleet.conductor.allow(6)
        await fleet.conductor.reached(6, attempt=2)
        line.closed = Way(0)
        await fleet.conductor.ended(await fleet.conductor.called(1))
        await fleet.conductor.allow(8)
        ended = await run.ended()
        assert line.dropped
        assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures) == (2, 0)
        await run.has_one_curve(8)
        await cut_off.vanish()

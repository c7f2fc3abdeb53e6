"""Hosts out of reach: flapping and short silence change nothing, a long one costs the lease and no more (F10)."""

from __future__ import annotations

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet

pytestmark = pytest.mark.slow


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
    assert fleet.conductor.twice() == []
    await run.has_one_curve(12)

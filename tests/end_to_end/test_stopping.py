"""Stops and silence: cancel, pause, and hosts that freeze (S3, S10, F3, F4, L4)."""

from __future__ import annotations

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind

pytestmark = pytest.mark.slow


async def test_cancel_saves_and_ends(fleet: Fleet) -> None:
    await fleet.host("a")
    run = await fleet.submit_gated(steps=8, save_every=100)
    await fleet.conductor.allow(3)
    await fleet.conductor.reached(3)
    await fleet.relayctl("cancel", "r")
    ended = await run.ended()
    assert ended.state == pb.Run.CANCELLED and ended.head.step == 3
    await fleet.relayctl("wait", "r", expect=11)


async def test_pause_and_resume_repeat_nothing(fleet: Fleet) -> None:
    await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=100)
    await fleet.conductor.allow(3)
    await fleet.conductor.reached(3)
    await fleet.relayctl("pause", "r")
    await run.until(lambda event: event.state == pb.Run.PAUSED)
    await fleet.relayctl("resume", "r")
    await fleet.conductor.allow(6)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and ended.failures == 0
    assert fleet.conductor.twice() == []
    await run.has_one_curve(6)


@pytest.mark.parametrize("policy", ["continue", "stop"])
async def test_a_frozen_host_counts_no_more(fleet: Fleet, policy: str) -> None:
    """F3, F4: agent, shim and trainer freeze past the lease; another host goes on; the woken one writes nothing."""
    frozen = await fleet.host("a")
    run = await fleet.submit_gated(steps=8, save_every=2, lifecycle={"on_disconnect": policy})
    await fleet.conductor.allow(3)
    await fleet.conductor.reached(3)
    await run.checkpoint(2)
    await fleet.host("b")
    with fleet.frozen(frozen):
        await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
        await fleet.conductor.called(2)
    await fleet.conductor.allow(8)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and ended.attempts == 2
    await run.has_one_curve(8)

"""Stops: cancel and pause (S10, L4)."""

from __future__ import annotations

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.rotating(3, of="end to end")]


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
    assert fleet.conductor.steps_done_twice() == []
    await run.has_one_curve(6)

"""The reply to a commit is lost: whoever asked asks again, and nothing happens twice (F8, S9)."""

from __future__ import annotations

import pytest

from relay.errors import RunExists
from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient
from tests.end_to_end.fleet import Fleet
from tests.faults.gateway import gateway

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]


async def test_every_reply_to_an_agent_may_be_lost(fleet: Fleet) -> None:
    """F8: welcome, start, events, checkpoint, copy and end: committed, not heard, and said again to no effect."""
    methods = ("Session", "StartAttempt", "AppendEvents", "RegisterCheckpoint", "AddCopy", "CompleteLease")
    async with gateway(fleet.proxy.address) as line:
        for method in methods:
            line.drop_replies(method, 2)
        await fleet.host("a", via=line.address)
        run = await fleet.submit_gated(steps=6, save_every=3)
        await fleet.conductor.allow(6)
        ended = await run.ended()
        assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures, ended.faults) == (1, 0, 0)
        for method in methods:
            await line.has_lost(method, 2)
        assert len(fleet.conductor.trainers) == 1 and fleet.conductor.steps_done_twice() == []
        await run.has_one_curve(6)
        (attempt,) = await run.attempts()
        assert attempt.outcome == pb.Attempt.SUCCEEDED
        await fleet.is_sound()


async def test_one_reply_in_ten_is_lost(fleet: Fleet) -> None:
    """F8, F10: a lost grant may cost an attempt, which then never began; a step is done once all the same."""
    async with gateway(fleet.proxy.address) as line:
        line.chance, line.doubling = 0.1, True
        await fleet.host("a", via=line.address)
        run = await fleet.submit_gated(steps=12, save_every=3)
        for step in (3, 6, 9, 12):
            await fleet.conductor.allow(step)
            await run.checkpoint(step, copied=False)
        ended = await run.ended()
        assert ended.state == pb.Run.SUCCEEDED and ended.failures == 0
        assert len(fleet.conductor.trainers) == 1 and fleet.conductor.steps_done_twice() == []
        await run.has_one_curve(12)


async def test_a_submission_whose_reply_is_lost_makes_one_run(fleet: Fleet) -> None:
    """F8: asked again with its own id it is answered alike, later too; another request for the name makes none."""
    spec = {"version": "relay/v1", "name": "r", "method": "command", "command": ["true"]}
    async with gateway(fleet.proxy.address) as line, RelayClient.connect(line.address) as client:
        line.drop_replies("CreateRun", 2)
        made = await client.create_run(spec, request_id="q")
        await line.has_lost("CreateRun", 2)
        assert len(line.passed) == 3
    async with RelayClient.connect(fleet.proxy.address) as client:
        assert (await client.create_run(spec, request_id="q")).run.name == made.run.name == "runs/r"
        with pytest.raises(RunExists):
            await client.create_run(spec, request_id="another")
        assert [run.name for run in await client.list_runs()] == ["runs/r"]
    fleet.submitted["q"] = "r"

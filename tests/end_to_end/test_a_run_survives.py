"""A run survives its host: real agents, shims and trainers, two replicas (S5 to S8, F2, F4)."""

from __future__ import annotations

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind

pytestmark = pytest.mark.slow
#: The other ways in which a run survives, beside the first two tests.
OTHERWISE = pytest.mark.rotating(1, of="a run survives")


async def test_happy_path(fleet: Fleet) -> None:
    await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=2)
    await fleet.conductor.allow(6)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED
    assert (ended.attempts, ended.failures, ended.faults) == (1, 0, 0)
    assert ended.head.step == 6 and ended.progress.step == 6 and ended.progress.total == 6
    assert ended.output.files == 1
    await run.has_one_curve(6)
    steps = [checkpoint.step for checkpoint in await run.checkpoints()]
    assert steps[-1] == 6 and set(steps) <= {2, 4, 6}


async def test_the_host_vanishes_in_the_middle(fleet: Fleet) -> None:
    """F2, F4: regranted, resumed at the newest checkpoint, one curve, nothing lost or doubled."""
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=8, save_every=3)
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await run.checkpoint(3)
    await fleet.host("b")
    await first.vanish()
    await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
    await fleet.conductor.allow(8)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and ended.attempts == 2 and ended.failures == 0
    assert fleet.conductor.steps_done_twice() == [4, 5]
    old, new = await run.attempts()
    assert old.outcome == pb.Attempt.FAULTED and old.kept_until_step == 3
    assert (new.resumed_step, new.places[0].agent) == (3, "agents/b")
    await run.has_one_curve(8)


@OTHERWISE
async def test_the_agent_alone_is_killed_and_restarted(fleet: Fleet) -> None:
    """F2: the trainer never stops, no attempt is used, no event is lost."""
    host = await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=2)
    await fleet.conductor.allow(3)
    trainer = await fleet.conductor.called(1)
    await fleet.conductor.reached(3)
    await host.kill_agent()
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await host.start()
    await fleet.conductor.allow(6)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.faults) == (1, 0)
    assert fleet.conductor.trainers == [trainer] and fleet.conductor.steps_done_twice() == []
    await run.has_one_curve(6)


@OTHERWISE
async def test_a_leaving_agent_hands_over_at_once(fleet: Fleet) -> None:
    """SIGTERM: checkpoint, released at once, another host goes on with no step trained twice."""
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=8, save_every=100)
    await fleet.conductor.allow(4)
    await fleet.conductor.reached(4)
    await fleet.host("b")
    assert await first.leave() == 0
    second = await fleet.conductor.called(2)
    assert second.resumed_from == 4
    await fleet.conductor.allow(8)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures, ended.faults) == (2, 0, 0)
    assert fleet.conductor.steps_done_twice() == []
    assert [attempt.outcome for attempt in await run.attempts()] == [pb.Attempt.STOPPED, pb.Attempt.SUCCEEDED]
    await run.has_one_curve(8)


@OTHERWISE
async def test_a_detached_agent_is_replaced(fleet: Fleet) -> None:
    """SIGUSR2 and a new agent: nothing happens to the trainer."""
    host = await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=2)
    await fleet.conductor.allow(2)
    await fleet.conductor.reached(2)
    assert await host.detach() == 0
    await fleet.conductor.allow(4)
    await fleet.conductor.reached(4)
    await host.start()
    await fleet.conductor.allow(6)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.faults) == (1, 0)
    assert len(fleet.conductor.trainers) == 1 and fleet.conductor.steps_done_twice() == []
    await run.has_one_curve(6)

"""What is expected of a run, whatever was done to what it runs on."""

from __future__ import annotations

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind, Watched


async def undisturbed(fleet: Fleet, run: Watched, steps: int) -> None:
    """It trains to its end by the one attempt, whose lease never lapsed, with one curve and no step done twice."""
    await fleet.conductor.allow(steps)
    ended = await run.ended()
    assert (ended.state, ended.attempts, ended.faults, ended.failures) == (pb.Run.SUCCEEDED, 1, 0, 0)
    assert Kind.LAPSED not in {event.kind async for event in run.history()}
    assert len(fleet.conductor.trainers) == 1 and fleet.conductor.twice() == []
    await run.has_one_curve(steps)

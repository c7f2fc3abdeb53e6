"""What tests begin with and what they expect of a run, whatever was done to what it runs on."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from relay.errors import LeaseLost, from_rpc
from relay.v1 import agents_pb2, agents_pb2_grpc
from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind, Watched


async def start_training(fleet: Fleet, to: int, **more: Any) -> Watched:
    """A run on a host that is there, which does its first steps and saves each second one."""
    run = await fleet.submit_gated(steps=8, save_every=2, **more)
    await fleet.conductor.allow(to)
    await fleet.conductor.reached(to)
    await run.checkpoint(to - to % 2)
    return run


async def is_refused(fleet: Fleet, lease: str) -> bool:
    """Return whether every replica refuses a write under this lease as lost (S2)."""
    for replica in fleet.deployment.replicas:
        async with grpc.aio.insecure_channel(replica.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                request = agents_pb2.CompleteLeaseRequest(lease=lease, succeeded=agents_pb2.Succeeded())
                await agents_pb2_grpc.AgentsStub(channel).CompleteLease(request, timeout=90)
        if not isinstance(from_rpc(raised.value), LeaseLost):
            return False
    return True


async def succeeded(run: Watched) -> pb.Run:
    """The run, once it has been trained to its end."""
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED, await describe_history(run)
    return ended


async def describe_history(run: Watched) -> str:
    """Return the run's history as text."""
    return "\n".join([f"{event.time.ToJsonString()} {event.attempt} {event.text}" async for event in run.history()])


async def expect_undisturbed(fleet: Fleet, run: Watched, steps: int) -> None:
    """It trains to its end by the one attempt, whose lease never lapsed, with one curve and no step done twice."""
    await fleet.conductor.allow(steps)
    await succeeded(run)
    (trainer,) = fleet.conductor.trainers
    kinds = [event.kind async for event in run.history() if event.attempt == trainer.attempt]
    assert kinds.count(Kind.STARTED) == kinds.count(Kind.ENDED) == 1 and Kind.LAPSED not in kinds, (
        await describe_history(run)
    )
    assert fleet.conductor.steps_done_twice() == []
    await run.has_one_curve(steps)

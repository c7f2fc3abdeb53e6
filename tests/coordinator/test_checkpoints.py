"""Checkpoints as hosts register them: which count, which one is head, and what a resume takes off the curve."""

import pytest
from grpc import aio

from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2
from tests.coordinator.agent_client import FAULTED, LEAVING, ScriptedAgent, connected
from tests.coordinator.fleet import World, reason

OTHER = "sha256:" + "1" * 64


async def refusal(agent: ScriptedAgent, lease: str, step: int, **more: object) -> str:
    """Why a checkpoint is refused."""
    with pytest.raises(aio.AioRpcError) as refused:
        await agent.save(lease, step, **more)  # type: ignore[arg-type]
    return reason(refused.value)


async def listed(world: World, *, superseded: bool = False) -> list[tuple[int, int, bool]]:
    """Attempt, step and whether it is head, of each checkpoint."""
    request = runs_pb2.ListCheckpointsRequest(name="runs/r", include_superseded=superseded, include_removed=superseded)
    found = (await world.replica.runs.ListCheckpoints(request)).checkpoints
    return [(checkpoint.attempt, checkpoint.step, checkpoint.head) for checkpoint in found]


async def test_the_head_moves_with_each_greater_step_once_its_events_are_stored(world: World) -> None:
    """S5."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        lease = (await a.take()).lease
        assert await refusal(a, lease, 10) == "START_MISSING"  # StartAttempt comes first (S6)
        await a.start(lease)
        assert await refusal(a, lease, 10, after=50) == "EVENTS_MISSING"
        await world.store(lease, 50)
        first = await a.save(lease, 10, after=50)
        assert (first.step, first.complete, first.head, first.lease) == (10, True, True, lease)
        assert [copy.uri for copy in first.parts[0].copies] == ["host://agents/a"]
        assert (await a.save(lease, 10, after=50)).name == first.name  # idempotent (F8, F17)
        assert await refusal(a, lease, 10, after=50, digest=OTHER) == "REQUEST_INVALID"
        await a.save(lease, 20, after=50)
        assert await refusal(a, lease, 15, after=50) == "REQUEST_INVALID"
        assert await listed(world) == [(1, 10, False), (1, 20, True)]
    assert [text for kind, text in await world.history() if kind == "checkpoint"] == [
        "step 10 is saved",
        "step 20 is saved",
    ]


async def test_a_resume_sets_the_head_back_and_takes_what_came_after_off_the_curve(world: World) -> None:
    """S6, F16: the newest is damaged, the one before is used, the next becomes head again."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = (await a.take()).lease
        await a.start(first)
        for step in (10, 20, 30):
            await a.save(first, step)
        await a.complete(first, **FAULTED)
        second = await a.next_lease()
        offered = second.assignment.checkpoints
        assert [checkpoint.step for checkpoint in offered] == [30, 20, 10]
        a.hold(second)
        skipped = [runs_pb2.SkippedCheckpoint(checkpoint=offered[0].name, step=30, reason="w.bin is truncated")]
        await a.start(second.lease, offered[1].name, skipped)
        await a.start(second.lease, offered[1].name, skipped)  # the reply was lost
        with pytest.raises(aio.AioRpcError):
            await a.start(second.lease, offered[2].name)
        assert await listed(world) == [(1, 10, False), (1, 20, True)]
        assert await listed(world, superseded=True) == [(1, 10, False), (1, 20, True), (1, 30, False)]
        await a.save(second.lease, 25)
        assert (await world.run()).head.step == 25
        [one, two] = await world.attempts()
        assert (one.kept_until_step, two.HasField("kept_until_step"), two.resumed_step) == (20, False, 20)
        assert [(s.step, s.reason) for s in two.skipped] == [(30, "w.bin is truncated")]
    assert ("started", "attempt 2 resumes at step 20; step 30 was skipped: w.bin is truncated") in await world.history()


async def test_a_resume_from_far_back_takes_every_later_attempt_off_the_curve(world: World) -> None:
    """S5, S6: three attempts; the third goes on from the first one's checkpoint, and the second leaves no trace."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(checkpoint={"keep": {"last": 9}})
        first = (await a.take()).lease
        await a.start(first)
        at_ten = (await a.save(first, 10)).name
        await a.save(first, 20)
        await a.complete(first, **LEAVING)
        second = await a.next_lease()
        await a.start(second.lease, at_ten)
        assert await refusal(a, second.lease, 9) == "REQUEST_INVALID"  # before where it resumed
        for step in (10, 15, 25):
            assert (await a.save(second.lease, step)).head
        await a.complete(second.lease, **LEAVING)
        third = await a.next_lease()
        assert [c.step for c in third.assignment.checkpoints] == [25, 15, 10, 10]
        await a.start(third.lease, at_ten)
        assert await listed(world) == [(1, 10, True)]
        kept = [(attempt.number, attempt.kept_until_step) for attempt in await world.attempts()]
        assert kept == [(1, 10), (2, 10), (3, 0)]
        with pytest.raises(aio.AioRpcError) as refused:
            await a.start(second.lease, at_ten)
        assert reason(refused.value) == "LEASE_LOST"


async def test_beginning_anew_takes_everything_off_the_curve(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = (await a.take()).lease
        await a.start(first)
        await a.save(first, 10)
        await a.complete(first, **FAULTED)
        second = await a.next_lease()
        await a.start(second.lease)
        assert (await listed(world), (await world.run()).HasField("head")) == ([], False)
        [one, _] = await world.attempts()
        assert one.kept_until_step == -1


async def test_only_a_checkpoint_on_the_curve_of_the_same_run_can_be_resumed_from(world: World) -> None:
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await world.submit("other", resources={"allowed_hosts": ["b"]})
        other = (await b.take()).lease
        await b.start(other)
        foreign = await b.save(other, 10)
        await world.submit()
        lease = (await a.take()).lease
        with pytest.raises(aio.AioRpcError) as refused:
            await a.start(lease, foreign.name)
        assert reason(refused.value) == "CHECKPOINT_UNKNOWN"


async def test_copies_are_added_once_and_told(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        lease = (await a.take()).lease
        await a.start(lease)
        saved = await a.save(lease, 10)
        copy = runs_pb2.Copy(store="relay", uri="relay://sha256:" + "a" * 64)
        for _ in range(2):
            await a.stub.AddCopy(pb.AddCopyRequest(lease=lease, checkpoint=saved.name, copy=copy))
        run = await world.run()
        assert [c.store for c in run.head.parts[0].copies] == ["host", "relay"]
    assert [kind for kind, _ in await world.history()].count("copied") == 1


async def test_a_new_head_forgets_the_faults_before_it(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = (await a.take()).lease
        await a.complete(first, **FAULTED)
        second = await a.next_lease()
        assert (await world.run()).faults == 1
        await a.start(second.lease)
        await a.save(second.lease, 10)
        assert (await world.run()).faults == 0

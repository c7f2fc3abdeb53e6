"""Checkpoints as hosts register them: which count, which one is the head, and what a resume supersedes."""

import json
import uuid
from typing import Any

import pytest
from grpc import aio

from coordinator.commands.events import ByteRange, append_ranges
from relay.v1 import agents_pb2 as pb
from relay.v1 import artifacts_pb2, runs_pb2
from storage.manifest import Manifest, ManifestFile, digest_bytes
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
        a.list_lease(second)
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
    """S5, S6: three attempts; the third resumes from the first one's checkpoint, and the second leaves no trace."""
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
        copy = runs_pb2.Copy(store="relay", uri=await put_folder(world, b"weights"))
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


async def put_folder(world: World, *contents: bytes) -> str:
    """Into the coordinator's own store; the uri."""
    files = []
    for place, data in enumerate(contents):
        await _put(world, data)
        files.append(ManifestFile(f"{place}.bin", len(data), digest_bytes(data)))
    manifest = Manifest(tuple(files)).to_bytes()
    await _put(world, manifest)
    return f"relay://{digest_bytes(manifest)}"


async def _put(world: World, data: bytes) -> None:
    header = artifacts_pb2.PutBlobHeader(digest=digest_bytes(data), size=len(data))
    messages = [artifacts_pb2.PutBlobRequest(header=header), artifacts_pb2.PutBlobRequest(chunk=data)]
    await world.replica.artifacts.PutBlob(iter(messages))


async def upload(world: World, agent: ScriptedAgent, lease: str, saved: runs_pb2.Checkpoint) -> str:
    """Brings a checkpoint beyond its host; the uri."""
    uri = await put_folder(world, f"weights of step {saved.step}".encode(), b"frozen")
    copy = runs_pb2.Copy(store="relay", uri=uri)
    await agent.stub.AddCopy(pb.AddCopyRequest(lease=lease, checkpoint=saved.name, copy=copy))
    return uri


async def checkpoints_of(world: World, *, removed: bool = False) -> dict[int, runs_pb2.Checkpoint]:
    """By step."""
    request = runs_pb2.ListCheckpointsRequest(name="runs/r", include_superseded=removed, include_removed=removed)
    return {each.step: each for each in (await world.replica.runs.ListCheckpoints(request)).checkpoints}


async def listed_removals(world: World, agent: ScriptedAgent, session_id: str, *, disk_low: bool = False) -> list[int]:
    """Steps of what a host is to remove; long after it was decided."""
    async with world.db.connection() as conn:
        await conn.execute("UPDATE checkpoint_copies SET remove_time = remove_time - interval '1 hour'")
    request = pb.ListRemovalsRequest(agent=f"agents/{agent.name}", session_id=session_id, disk_low=disk_low)
    answer = await agent.stub.ListRemovals(request)
    await agent.stub.ReportRemovals(
        pb.ReportRemovalsRequest(agent=request.agent, session_id=session_id, removals=answer.removals)
    )
    return [removal.step for removal in answer.removals]


KEEP_ONE: dict[str, Any] = {"checkpoint": {"keep": {"last": 1}}}


async def test_what_need_not_stay_is_let_go_when_a_newer_one_is_beyond_its_host(world: World) -> None:
    a = ScriptedAgent(world.replica.agents, "a")
    session = (await a.hello()).session_id
    await world.submit(**KEEP_ONE)
    lease = (await a.take()).lease
    await a.start(lease)
    first = await a.save(lease, 10)
    await upload(world, a, lease, first)
    second = await a.save(lease, 20)
    found = await checkpoints_of(world)
    assert {step: list(each.keep_reasons) for step, each in found.items()} == {
        10: ["the newest with a copy beyond its host"],
        20: ["head", "being uploaded", "the last"],
    }
    assert await listed_removals(world, a, session) == []
    await upload(world, a, lease, second)
    assert list(await checkpoints_of(world)) == [20]
    gone = (await checkpoints_of(world, removed=True))[10]
    assert gone.remove_reason == "not selected by checkpoint.keep" and gone.HasField("remove_time")
    assert [(copy.store, copy.HasField("remove_time")) for copy in gone.parts[0].copies] == [("host", True)]
    assert ("removed", "step 10 scheduled for deletion: not selected by checkpoint.keep") in await world.history()
    assert await listed_removals(world, a, session) == [10]
    assert await listed_removals(world, a, session) == []  # and it is forgotten
    await upload(world, a, lease, first)  # a late repetition brings nothing back
    assert list((await checkpoints_of(world, removed=True))[10].parts[0].copies) == []
    a.vanish()


async def test_bytes_stay_for_a_lease_after_they_were_let_go(world: World) -> None:
    """F9: a failover may lose the decision to delete them, and its reason."""
    a = ScriptedAgent(world.replica.agents, "a")
    session = (await a.hello()).session_id
    await world.submit(**KEEP_ONE)
    lease = (await a.take()).lease
    await a.start(lease)
    for step in (10, 20):
        await upload(world, a, lease, await a.save(lease, step))
    request = pb.ListRemovalsRequest(agent="agents/a", session_id=session)
    assert not (await a.stub.ListRemovals(request)).removals
    assert await listed_removals(world, a, session) == [10]
    a.vanish()


async def test_a_pin_keeps_a_checkpoint_until_it_is_taken_back(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(**KEEP_ONE)
        lease = (await a.take()).lease
        await a.start(lease)
        saved = await a.save(lease, 10)
        await upload(world, a, lease, saved)
        for _ in range(2):
            pinned = await world.replica.runs.PinCheckpoint(
                runs_pb2.PinCheckpointRequest(name=saved.name, reason="the paper's")
            )
            assert (pinned.pinned, pinned.pin_reason) == (True, "the paper's")
        await upload(world, a, lease, await a.save(lease, 20))
        assert list((await checkpoints_of(world))[10].keep_reasons) == ["pinned"]
        for _ in range(2):
            await world.replica.runs.UnpinCheckpoint(runs_pb2.UnpinCheckpointRequest(name=saved.name))
        assert list(await checkpoints_of(world)) == [20]
        with pytest.raises(aio.AioRpcError) as late:
            await world.replica.runs.PinCheckpoint(runs_pb2.PinCheckpointRequest(name=saved.name))
        assert reason(late.value) == "CHECKPOINT_REMOVED"
        with pytest.raises(aio.AioRpcError) as unknown:
            name = saved.name.replace("runs/r/", "runs/other/")
            await world.replica.runs.PinCheckpoint(runs_pb2.PinCheckpointRequest(name=name))
        assert reason(unknown.value) == "RUN_UNKNOWN"
    wanted = [text for kind, text in await world.history() if kind == "wanted"]
    assert wanted == ["step 10 is pinned: the paper's", "step 10 is no longer pinned"]


async def test_nothing_is_let_go_while_an_attempt_has_not_said_what_it_resumes_from(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(checkpoint={"keep": {"last": 2}})
        first = (await a.take()).lease
        await a.start(first)
        for step in (10, 20, 30):
            saved = await a.save(first, step)
            await upload(world, a, first, saved)
            if step == 10:
                await world.replica.runs.PinCheckpoint(runs_pb2.PinCheckpointRequest(name=saved.name))
                pinned = saved.name
        await a.complete(first, **FAULTED)
        second = await a.next_lease()
        await world.replica.runs.UnpinCheckpoint(runs_pb2.UnpinCheckpointRequest(name=pinned))
        assert sorted(await checkpoints_of(world)) == [10, 20, 30]
        assert (await checkpoints_of(world))[10].remove_reason == "not selected by checkpoint.keep"  # a dry run
        a.list_lease(second)
        await a.start(second.lease, second.assignment.checkpoints[0].name)
        assert sorted(await checkpoints_of(world)) == [20, 30]


async def test_a_copy_that_is_being_removed_is_offered_to_nobody(world: World) -> None:
    a = ScriptedAgent(world.replica.agents, "a")
    session = (await a.hello()).session_id
    await world.submit(checkpoint={"keep": {"last": 3}})
    first = (await a.take()).lease
    await a.start(first)
    for step in (10, 20):
        await upload(world, a, first, await a.save(first, step))
    assert await listed_removals(world, a, session, disk_low=True) == []  # marked just now
    assert ("removed", "a is low on disk: its copies of step 10 are scheduled for deletion") in await world.history()
    await a.complete(first, **FAULTED)
    offered = (await a.next_lease()).assignment.checkpoints
    stores = {each.step: [copy.store for copy in each.parts[0].copies] for each in offered}
    assert stores == {20: ["host", "relay"], 10: ["relay"]}
    assert await listed_removals(world, a, session, disk_low=True) == [10]  # the head's copy stays
    with pytest.raises(aio.AioRpcError) as refused:
        await a.stub.ListRemovals(pb.ListRemovalsRequest(agent="agents/a", session_id=str(uuid.uuid4())))
    assert reason(refused.value) == "SESSION_REPLACED"
    a.vanish()


async def test_what_the_store_lacks_is_no_copy(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        lease = (await a.take()).lease
        await a.start(lease)
        saved = await a.save(lease, 10)
        data = Manifest((ManifestFile("w.bin", 1, OTHER),)).to_bytes()
        await _put(world, data)
        for digest in (OTHER, digest_bytes(data)):
            copy = runs_pb2.Copy(store="relay", uri=f"relay://{digest}")
            with pytest.raises(aio.AioRpcError) as refused:
                await a.stub.AddCopy(pb.AddCopyRequest(lease=lease, checkpoint=saved.name, copy=copy))
            assert reason(refused.value) == "INPUT_MISSING"


async def test_a_command_that_lacks_the_metric_to_keep_by_is_told_at_its_first_checkpoint(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(checkpoint={"keep": {"best": 1, "metric": "loss"}})
        lease = (await a.take()).lease
        await a.start(lease)
        for step in (10, 20):
            await a.save(lease, step)
    assert [text for kind, text in await world.history() if kind == "message"] == [
        "checkpoint.keep.metric: the checkpoint of step 10 was reported without loss; it has no metrics"
    ]


async def _send(a: ScriptedAgent, world: World, lease: str, offset: int, step: int, **values: object) -> int:
    """Send a metric line of the lease's event file, which begins at `offset`; return where it ends."""
    line = json.dumps({"type": "metric", "step": step, "values": values}).encode() + b"\n"
    run, lease_id = lease.split("/")[1], uuid.UUID(lease.rpartition("/")[2])
    (stored,) = await append_ranges(world.db, [ByteRange(run, lease_id, 0, "events", offset, line)], wait=True)
    assert stored == offset + len(line)
    return stored


async def _labels(world: World) -> dict[int, tuple[dict[str, float], bool, list[str]]]:
    """Return the metrics of each checkpoint, whether its evaluation is due, and why it is kept."""
    found = (await world.replica.runs.ListCheckpoints(runs_pb2.ListCheckpointsRequest(name="runs/r"))).checkpoints
    return {each.step: (dict(each.metrics), each.evaluation_due, list(each.keep_reasons)) for each in found}


async def test_an_evaluation_labels_the_checkpoint_of_its_step_whichever_comes_first(world: World) -> None:
    """And once, however often its line is sent, with the values of its own step only."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(checkpoint={"keep": {"last": 1, "best": 1, "metric": "eval_loss"}})
        lease = (await a.take()).lease
        await a.start(lease)
        await a.save(lease, 10, evaluation_due=True)
        assert await _labels(world) == {10: ({}, True, ["head", "not evaluated yet", "being uploaded", "the last"])}
        end = await _send(a, world, lease, 0, 9, eval_loss=0.1)
        assert (await _labels(world))[10][:2] == ({}, True)
        for _ in range(2):
            again = await _send(
                a, world, lease, end, 10, eval_loss=0.5, eval_runtime=3.0, eval_kl="NaN", train_loss=1.0
            )
        assert (await _labels(world))[10][:2] == ({"eval_loss": 0.5}, False)
        end = await _send(a, world, lease, again, 20, eval_loss=0.25)
        await a.save(lease, 20, evaluation_due=True)
        await a.save(lease, 30)
        found = {step: (metrics, due) for step, (metrics, due, _) in (await _labels(world)).items()}
        assert found == {10: ({"eval_loss": 0.5}, False), 20: ({"eval_loss": 0.25}, False), 30: ({}, False)}
        assert "best by eval_loss" in (await _labels(world))[20][2]


async def test_the_attempt_that_resumes_from_a_checkpoint_may_bring_its_evaluation(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = (await a.take()).lease
        await a.start(first)
        saved = await a.save(first, 10, evaluation_due=True)
        await a.complete(first, **LEAVING)
        second = (await a.take()).lease
        await a.start(second, saved.name)
        await _send(a, world, second, 0, 10, eval_loss=0.5)
        assert (await _labels(world))[10][:2] == ({"eval_loss": 0.5}, False)
        with pytest.raises(AssertionError):  # the first attempt has ended: nothing more of it is stored
            await _send(a, world, first, 0, 10, eval_loss=9.0)
        assert (await _labels(world))[10][:2] == ({"eval_loss": 0.5}, False)


async def test_an_evaluation_that_is_repeated_by_the_next_attempt_is_on_the_curve_once(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = (await a.take()).lease
        await a.start(first)
        saved = await a.save(first, 10, evaluation_due=True)
        await _send(a, world, first, 0, 10, eval_loss=0.5, eval_kl=0.25)
        await a.complete(first, **LEAVING)
        second = (await a.take()).lease
        await a.start(second, saved.name)
        end = await _send(a, world, second, 0, 10, eval_loss=0.5, eval_kl=0.25)
        end = await _send(a, world, second, end, 11, train_loss=1.0)
        await _send(a, world, second, end, 20, eval_loss=0.375)
        request = runs_pb2.ReadMetricsRequest(name="runs/r")
        pieces = [piece async for piece in world.replica.runs.ReadMetrics(request)]
        curve = sorted((each.metric, *point) for each in pieces for point in zip(each.steps, each.values, strict=True))
        assert curve == [
            ("eval_kl", 10, 0.25),
            ("eval_loss", 10, 0.5),
            ("eval_loss", 20, 0.375),
            ("train_loss", 11, 1.0),
        ]

"""Trainings that ran elsewhere: imported as runs in one transaction, paused, and resumed like any other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from coordinator.artifacts.folder import FolderArtifacts
from coordinator.artifacts.garbage_collection import Collector
from coordinator.background.garbage_collection import collect_once
from coordinator.commands import imports
from coordinator.rpc.interceptors import LARGER_BYTES
from relay.v1 import artifacts_pb2
from relay.v1 import runs_pb2 as pb
from storage.manifest import Manifest, ManifestFile, digest_bytes
from tests.conftest import RunningCoordinator
from tests.coordinator.agent_client import SUCCEEDED, connected
from tests.coordinator.fleet import COMMAND, World, reason
from tests.history.checker import violations
from tests.history.record import recorded

Checkpoint = pb.ImportedCheckpoint
CHUNK = 512 * 1024
ORIGIN = "/mnt/relay/runs/old on host-a"


async def put(replica: RunningCoordinator, data: bytes) -> str:
    """A blob; its digest."""
    digest = digest_bytes(data)
    header = artifacts_pb2.PutBlobHeader(digest=digest, size=len(data))
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    requests = [artifacts_pb2.PutBlobRequest(header=header), *(artifacts_pb2.PutBlobRequest(chunk=c) for c in chunks)]
    await replica.artifacts.PutBlob(iter(requests))
    return digest


async def saved(world: World, step: int, **more: Any) -> Checkpoint:
    """A checkpoint of one file, which is in the store."""
    data = f"weights of {step}".encode()
    manifest = Manifest((ManifestFile("weights", len(data), await put(world.replica, data)),), step)
    digest = await put(world.replica, manifest.to_bytes())
    return Checkpoint(step=step, manifest_digest=digest, size=len(data), files=1, **more)


async def curve(world: World, *events: dict[str, Any]) -> str:
    return await put(world.replica, "".join(json.dumps(event) + "\n" for event in events).encode())


def loss(step: int, value: float, **more: Any) -> dict[str, Any]:
    return {"type": "metric", "step": step, "values": {"train_loss": value}, **more}


async def import_run(
    world: World, checkpoints: Sequence[Checkpoint], name: str = "old", **more: Any
) -> pb.ImportRunResponse:
    """Imports a run."""
    request = {key: more.pop(key) for key in ("request_id", "validate_only", "curve_digest", "inputs") if key in more}
    spec = struct_pb2.Struct()
    spec.update({**COMMAND, "name": name, **more})
    message = pb.ImportRunRequest(spec=spec, checkpoints=checkpoints, origin=ORIGIN, **request)
    return await world.replica.runs.ImportRun(message)


async def refusal(world: World, checkpoints: Sequence[Checkpoint], **more: Any) -> tuple[str, str]:
    with pytest.raises(aio.AioRpcError) as refused:
        await import_run(world, checkpoints, **more)
    return reason(refused.value), str(refused.value.details())


async def is_sound(world: World) -> None:
    """S1 to S9, by the history checker."""
    found = violations(await recorded(world.replica.database_url))
    assert not found, list(map(str, found))


async def points(world: World, name: str = "old") -> list[tuple[str, int, float]]:
    stretches = [each async for each in world.replica.runs.ReadMetrics(pb.ReadMetricsRequest(name=f"runs/{name}"))]
    return [(s.metric, step, value) for s in stretches for step, value in zip(s.steps, s.values, strict=True)]


async def test_a_training_that_ran_elsewhere_rests_with_its_newest_checkpoint_as_head(world: World) -> None:
    long_ago = Timestamp(seconds=1_700_000_000)
    found = [await saved(world, 4, metrics={"eval_loss": 0.5}), await saved(world, 2, time=long_ago)]
    drawn = await curve(
        world,
        loss(1, 3.0, time="2023-11-14T22:13:20Z"),
        {"type": "progress", "step": 4, "total": 8, "epoch": 0.5},
        loss(4, 1.0),
        loss(5, 9.0),
        {"type": "metric", "step": 4, "values": {"": 1}},
    )
    made = await import_run(world, found, curve_digest=drawn)
    run = made.run
    assert (made.created, run.state, run.wanted) == (True, pb.Run.PAUSED, pb.Run.PAUSE)
    assert run.reason == f"imported from {ORIGIN}"
    assert (run.head.step, run.head.complete, run.head.parts[0].copies[0].store) == (4, True, "relay")
    assert (run.progress.step, run.progress.total, run.progress.epoch) == (4, 8, 0.5)
    assert (dict(run.progress.metrics), run.attempts, run.failures) == ({"train_loss": 1.0}, 1, 0)
    assert await points(world) == [("train_loss", 1, 3.0), ("train_loss", 4, 1.0)]

    [attempt] = await world.attempts("old")
    assert (attempt.number, attempt.state, attempt.outcome) == (1, pb.Attempt.ENDED, pb.Attempt.STOPPED)
    assert (attempt.reason, list(attempt.places), attempt.HasField("start_time")) == (run.reason, [], True)
    listed = await world.replica.runs.ListCheckpoints(pb.ListCheckpointsRequest(name="runs/old"))
    assert [(each.step, dict(each.metrics)) for each in listed.checkpoints] == [(2, {}), (4, {"eval_loss": 0.5})]
    assert listed.checkpoints[0].create_time == long_ago
    kinds = ["created", "granted", "started", "checkpoint", "checkpoint", "dropped", "ended"]
    assert [kind for kind, _ in await world.history("old")] == kinds
    await is_sound(world)


async def test_it_is_resumed_like_any_other_and_is_one_run_with_one_curve(world: World) -> None:
    """S6, S7."""
    await import_run(
        world, [await saved(world, 2), await saved(world, 4)], curve_digest=await curve(world, loss(4, 1.0))
    )
    async with connected(world.replica.agents, "a") as [a]:
        await world.replica.runs.ResumeRun(pb.ResumeRunRequest(name="runs/old"))
        desired = await a.take()
        assert [each.step for each in desired.assignment.checkpoints] == [4, 2]
        await a.start(desired.lease, desired.assignment.checkpoints[0].name)
        await a.save(desired.lease, 6)
        await a.complete(desired.lease, **SUCCEEDED)
    run = await world.run("old")
    assert (run.state, run.head.step, run.attempts) == (pb.Run.SUCCEEDED, 6, 2)
    assert [(each.number, each.resumed_step) for each in await world.attempts("old")] == [(1, 0), (2, 4)]
    await is_sound(world)


async def test_an_older_checkpoint_takes_what_came_after_off_the_curve(world: World) -> None:
    """S6: as of any attempt."""
    drawn = await curve(world, *(loss(step, step / 10) for step in range(1, 5)))
    await import_run(world, [await saved(world, 2), await saved(world, 4)], curve_digest=drawn)
    async with connected(world.replica.agents, "a") as [a]:
        await world.replica.runs.ResumeRun(pb.ResumeRunRequest(name="runs/old"))
        desired = await a.take()
        newest, older = desired.assignment.checkpoints
        skipped = pb.SkippedCheckpoint(checkpoint=newest.name, step=4, reason="damaged")
        await a.start(desired.lease, older.name, [skipped])
        assert [step for _, step, _ in await points(world)] == [1, 2]
    await is_sound(world)


async def test_what_a_training_did_again_replaces_what_it_did_before(world: World) -> None:
    """It was resumed from step 2 where it ran: its file has steps 3 and 4 twice."""
    again = [loss(3, 30.0), loss(5, 50.0)]
    drawn = await curve(world, *(loss(step, float(step)) for step in range(1, 5)), *again)
    await import_run(world, [await saved(world, 5)], curve_digest=drawn)
    assert [(step, value) for _, step, value in await points(world)] == [(1, 1.0), (2, 2.0), (3, 30.0), (5, 50.0)]


async def test_nothing_of_it_is_later_than_the_database_says_it_is(world: World) -> None:
    later = time.time() + 86_400
    drawn = await curve(world, loss(1, 1.0, time=later))
    await import_run(world, [await saved(world, 1, time=Timestamp(seconds=int(later)))], curve_digest=drawn)
    [checkpoint] = (await world.replica.runs.ListCheckpoints(pb.ListCheckpointsRequest(name="runs/old"))).checkpoints
    assert checkpoint.create_time.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    await is_sound(world)


async def test_the_same_is_imported_once_also_at_the_same_time_and_under_other_requests(world: World) -> None:
    """S9, F8."""
    found = [await saved(world, 2), await saved(world, 4)]
    answers = await asyncio.gather(*(import_run(world, found, request_id=f"q{n % 3}") for n in range(6)))
    assert [answer.created for answer in answers].count(True) == 1
    assert {answer.run.name for answer in answers} == {"runs/old"}
    assert not (await import_run(world, found)).created
    assert [kind for kind, _ in await world.history("old")].count("checkpoint") == 2
    assert (await refusal(world, found[:1]))[0] == "RUN_EXISTS"
    assert "with other checkpoints" in (await refusal(world, found[:1]))[1]
    assert "with another spec" in (await refusal(world, found, priority=3))[1]
    assert (await refusal(world, found[:1], request_id="q1"))[0] == "REQUEST_ID_REUSED"
    await world.submit("taken")
    assert (await refusal(world, found, name="taken"))[0] == "RUN_EXISTS"


async def test_what_is_not_in_the_store_is_named_and_nothing_is_made(world: World) -> None:
    found = await saved(world, 2)
    lacking = Manifest((ManifestFile("optimizer.pt", 3, "sha256:" + "7" * 64),), 4)
    part = Checkpoint(step=4, manifest_digest=await put(world.replica, lacking.to_bytes()), size=3, files=1)
    assert await refusal(world, [found, part]) == ("INPUT_MISSING", "not in the artifact store: optimizer.pt of step 4")
    none = Checkpoint(step=4, manifest_digest="sha256:" + "8" * 64)
    assert "the manifest of step 4" in (await refusal(world, [found, none]))[1]
    assert "the curve" in (await refusal(world, [found], curve_digest="sha256:" + "9" * 64))[1]
    file = pb.Input(path="train.py", digest="sha256:" + "6" * 64)
    assert "train.py" in (await refusal(world, [found], inputs=[file]))[1]
    assert not (await world.replica.runs.ListRuns(pb.ListRunsRequest())).runs


async def test_a_request_that_contradicts_itself_is_refused(world: World) -> None:
    found = await saved(world, 2)
    other = Checkpoint(step=3, manifest_digest=found.manifest_digest, size=found.size, files=1)
    wrong = [[], [found, found], [other], [Checkpoint(step=1, manifest_digest="sha256:1")]]
    wrong.append([Checkpoint(step=2, manifest_digest=found.manifest_digest, size=1, files=1)])
    wrong.append([Checkpoint(step=-1, manifest_digest=found.manifest_digest)])
    wrong.append([Checkpoint(step=2, manifest_digest=await put(world.replica, b"no manifest"))])
    for checkpoints in wrong:
        assert (await refusal(world, checkpoints))[0] == "REQUEST_INVALID"
    assert (await refusal(world, [found], priorty=1))[0] == "SPEC_INVALID"
    many = [Checkpoint(step=step, manifest_digest=found.manifest_digest) for step in range(1001)]
    assert await refusal(world, many) == ("MESSAGE_TOO_LARGE", "1001 checkpoints; the limit is 1000")
    large = await refusal(world, [found], env={"X": "x" * LARGER_BYTES["/relay.v1.Runs/ImportRun"]})
    assert (large[0], "at most 2097152" in large[1]) == ("MESSAGE_TOO_LARGE", True)


async def test_many_checkpoints_and_a_hundred_thousand_points_are_taken(world: World) -> None:
    first = await saved(world, 1)
    manifests = [Manifest(_files_of(first), step) for step in range(1, 201)]
    digests = await asyncio.gather(*(put(world.replica, each.to_bytes()) for each in manifests))
    found = [
        Checkpoint(step=step, manifest_digest=digest, size=first.size, files=1)
        for step, digest in enumerate(digests, start=1)
    ]
    drawn = await curve(
        world, *({"type": "metric", "step": n, "values": {f"m{k}": n * k for k in range(500)}} for n in range(1, 201))
    )
    assert (await import_run(world, found, curve_digest=drawn)).run.head.step == 200
    assert len(await points(world)) == 100_000


def _files_of(checkpoint: Checkpoint) -> tuple[ManifestFile, ...]:
    data = f"weights of {checkpoint.step}".encode()
    return (ManifestFile("weights", len(data), digest_bytes(data)),)


async def test_the_plan_needs_no_content_and_says_what_will_go(world: World) -> None:
    found = [Checkpoint(step=step, size=10, files=1, metrics={"eval_loss": step}) for step in (1, 2, 3, 4, 5)]
    planned = await import_run(world, found, validate_only=True)
    assert (planned.created, list(planned.steps_to_remove)) == (False, [1, 2])
    assert planned.placement == "no host has joined yet"
    best = {"keep": {"last": 1, "best": 1, "metric": "eval_loss"}}
    assert list((await import_run(world, found, validate_only=True, checkpoint=best)).steps_to_remove) == [2, 3, 4]
    assert not (await world.replica.runs.ListRuns(pb.ListRunsRequest())).runs


async def test_what_is_imported_stays_in_the_store_until_it_is_let_go(world: World) -> None:
    found = [await saved(world, step) for step in (1, 2, 3)]
    await import_run(world, found, checkpoint={"keep": {"last": 1}})
    await put(world.replica, b"nothing names this")
    collector = Collector(FolderArtifacts(world.replica.artifact_dir, limit=1 << 30))
    swept = await collect_once(world.db, collector, 0.0)
    assert swept is not None and (swept.blobs, swept.left) == (1, 6)
    async with connected(world.replica.agents, "a") as [a]:
        await world.replica.runs.ResumeRun(pb.ResumeRunRequest(name="runs/old"))
        desired = await a.take()
        await a.start(desired.lease, desired.assignment.checkpoints[0].name)
    swept = await collect_once(world.db, collector, 0.0)
    assert swept is not None and (swept.blobs, swept.left) == (4, 2)


async def test_all_of_it_or_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [await saved(world, 2)]

    async def fail(*_: object) -> None:
        raise asyncpg.PostgresError("the line broke")

    monkeypatch.setattr(imports, "_write_curve", fail)
    with pytest.raises(aio.AioRpcError):
        await import_run(world, found, request_id="q")
    assert not (await world.replica.runs.ListRuns(pb.ListRunsRequest())).runs
    monkeypatch.undo()
    assert (await import_run(world, found, request_id="q")).created

"""What the run file keeps is what is left, in the coordinator's store and on every host, whatever was killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.artifacts.folder import FolderArtifacts
from coordinator.artifacts.garbage_collection import Collector, read_file_digests
from coordinator.background.garbage_collection import collect_once
from coordinator.database.connections import connect_database
from relay.v1 import runs_pb2 as pb
from relayctl.local.deployment import LocalHost
from tests.end_to_end.conductor import true_loss
from tests.end_to_end.fleet import Deployment, Fleet, Kind, Watched

pytestmark = [pytest.mark.slow, pytest.mark.rotating(3, of="end to end")]
STEPS, EVERY = 14, 2
PATIENCE = 90.0  #: seconds; a host looks every six


def on_disk(host: LocalHost) -> set[int]:
    """Steps of the sealed checkpoints on a host, those that are being removed included."""
    found = host.root.glob("runs/r/attempts/*/ckpt/*step_*")
    return {int(path.name.rpartition("_")[2]) for path in found}


def on(checkpoint: pb.Checkpoint, store: str) -> bool:
    return any(copy.uri.startswith(store) for part in checkpoint.parts for copy in part.copies)


async def all_removed(run: Watched) -> list[pb.Checkpoint]:
    """Return the checkpoints that stay, once those that were scheduled for deletion have no copy left."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await run.checkpoints(superseded=True)
            if not any(part.copies for each in found if each.HasField("remove_time") for part in each.parts):
                return [each for each in found if not each.HasField("remove_time")]


async def blobs_left(deployment: Deployment) -> set[Path]:
    """The files in the store, after all that nothing names was collected; they are just those that are named."""
    artifacts = FolderArtifacts(deployment.artifacts, limit=1 << 40)
    async with connect_database(deployment.database_url) as db:
        assert await collect_once(db, Collector(artifacts), grace=-1.0)
    return set((deployment.artifacts / "blobs").glob("??/*"))


async def test_only_the_last_and_the_best_are_left_after_kills(fleet: Fleet) -> None:
    keep = {"last": 1, "best": 1, "metric": "loss"}
    a = await fleet.host("a")
    run = await fleet.submit_gated(steps=STEPS, save_every=EVERY, checkpoint={"keep": keep})
    for step in (2, 4, 6):
        await fleet.conductor.allow(step)
        await run.checkpoint(step)
        await a.kill_agent()  # perhaps while it removes
        await a.start()
    await fleet.conductor.allow(7)
    await fleet.conductor.reached(7)
    await a.vanish()
    b = await fleet.host("b")
    await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
    for step in range(8, STEPS + 1, EVERY):
        await fleet.conductor.allow(step)
        await run.checkpoint(step, attempt=2)
        replica = fleet.deployment.replicas[step // EVERY % 2]
        await replica.kill()
        await replica.start()
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and ended.head.step == STEPS

    best = min(range(EVERY, STEPS + 1, EVERY), key=true_loss)
    await a.start()  # its disk has what nobody wants any more
    left = await all_removed(run)
    assert [(each.step, list(each.keep_reasons)) for each in left] == sorted(
        {
            best: (best, ["best by loss"]),
            STEPS: (STEPS, ["head", "the last"] + ["best by loss"] * (best == STEPS)),
        }.values()
    )
    assert all(on(each, "relay://") for each in left)
    for host in (a, b):
        assert on_disk(host) == {each.step for each in left if on(each, f"host://agents/{host.name}")}
    artifacts = FolderArtifacts(fleet.deployment.artifacts, limit=1 << 40)
    manifests = {part.manifest_digest for each in left for part in each.parts} | {ended.output.manifest_digest}
    named = manifests.union(*(read_file_digests(artifacts, digest) for digest in manifests))
    named |= {entry.digest for entry in ended.inputs}
    assert {f"sha256:{path.name}" for path in await blobs_left(fleet.deployment)} == named

"""Copies that a user has made: added after a check, and offered to hosts."""

from typing import Any

import pytest
from grpc import aio

from relay.v1 import runs_pb2 as pb
from storage.manifest import Manifest, ManifestFile, digest_bytes
from tests.coordinator.agent_client import DIGEST, FAULTED, connected
from tests.coordinator.fleet import World, reason
from tests.coordinator.test_checkpoints import KEEP_ONE, OTHER, checkpoints_of, put_folder, upload

PUSHED = pb.Copy(store="s3", uri="s3://bucket/pushed/r/step_00000010")


async def add(world: World, name: str, copy: pb.Copy = PUSHED, digest: str = DIGEST, node: int = 0) -> pb.Checkpoint:
    request = pb.RunsAddCopyRequest(name=name, node=node, manifest_digest=digest, copy=copy)
    return await world.replica.runs.AddCopy(request)


async def capture_refusal(world: World, name: str, **more: Any) -> tuple[str, str]:
    """Why a copy is refused: the reason, and in words."""
    with pytest.raises(aio.AioRpcError) as error:
        await add(world, name, **more)
    return reason(error.value), error.value.details() or ""


async def test_a_pushed_copy_is_added_once_recorded_once_and_offered(world: World) -> None:
    """Also for a run that no host holds; the head does not move."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(checkpoint={"keep": {"last": 9}})
        first = (await a.take()).lease
        await a.start(first)
        old = await a.save(first, 10)
        await a.save(first, 20)
        await a.complete(first, **FAULTED)
        for _ in range(2):
            added = await add(world, old.name)
            assert [copy.store for copy in added.parts[0].copies] == ["host", "s3"]
            assert (added.step, added.head) == (10, False)
        assert (await world.run()).head.step == 20
        offered = (await a.next_lease()).assignment.checkpoints
        stores = {each.step: [copy.uri for copy in each.parts[0].copies] for each in offered}
        assert stores[10] == ["host://agents/a", PUSHED.uri]
    assert [entry for entry in await world.history() if entry[0] == "copied"] == [
        ("copied", "step 10 has a copy in s3")
    ]


async def test_a_copy_of_something_else_is_refused(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        lease = (await a.take()).lease
        await a.start(lease)
        name = (await a.save(lease, 10)).name
        assert (await capture_refusal(world, name, digest=OTHER))[0] == "REQUEST_INVALID"
        assert "other content" in (await capture_refusal(world, name, digest=OTHER))[1]
        assert (await capture_refusal(world, name, node=1))[0] == "CHECKPOINT_UNKNOWN"
        assert (await capture_refusal(world, f"{name[:-1]}{'0' if name[-1] != '0' else '1'}"))[
            0
        ] == "CHECKPOINT_UNKNOWN"
        assert (await capture_refusal(world, name.replace("runs/r/", "runs/other/")))[0] == "RUN_UNKNOWN"
        await world.submit("other", resources={"allowed_hosts": ["nobody"]})
        assert (await capture_refusal(world, name.replace("runs/r/", "runs/other/")))[0] == "CHECKPOINT_UNKNOWN"
        assert (await capture_refusal(world, "runs/r/checkpoints/10"))[0] == "REQUEST_INVALID"
        for copy in (pb.Copy(store="host", uri="host://agents/a"), pb.Copy(store="s3", uri="gs://bucket/there")):
            assert (await capture_refusal(world, name, copy=copy))[0] == "REQUEST_INVALID"
        [saved] = (await checkpoints_of(world)).values()
        assert [copy.store for copy in saved.parts[0].copies] == ["host"]
    assert "copied" not in [kind for kind, _ in await world.history()]


async def test_what_the_artifact_store_lacks_is_no_copy_there(world: World) -> None:
    whole = Manifest((ManifestFile("0.bin", 1, digest_bytes(b"w")),)).digest
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        lease = (await a.take()).lease
        await a.start(lease)
        name = (await a.save(lease, 10, digest=whole)).name
        own = pb.Copy(store="relay", uri=f"relay://{whole}")
        assert (await capture_refusal(world, name, copy=own, digest=whole))[0] == "INPUT_MISSING"
        assert await put_folder(world, b"w") == own.uri
        another = pb.Copy(store="relay", uri=await put_folder(world, b"x"))
        assert (await capture_refusal(world, name, copy=another, digest=whole))[0] == "REQUEST_INVALID"
        added = await add(world, name, own, whole)
        assert [copy.store for copy in added.parts[0].copies] == ["host", "relay"]


async def test_nothing_is_brought_back_that_was_let_go(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(**KEEP_ONE)
        lease = (await a.take()).lease
        await a.start(lease)
        first = await a.save(lease, 10)
        await upload(world, a, lease, first)
        await upload(world, a, lease, await a.save(lease, 20))
        assert list(await checkpoints_of(world)) == [20]
        assert (await capture_refusal(world, first.name))[0] == "CHECKPOINT_REMOVED"
        gone = (await checkpoints_of(world, removed=True))[10]
        assert [copy.store for copy in gone.parts[0].copies] == ["host"]


async def test_a_pushed_head_makes_what_was_kept_in_its_place_spare(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(**KEEP_ONE)
        lease = (await a.take()).lease
        await a.start(lease)
        await upload(world, a, lease, await a.save(lease, 10))
        head = await a.save(lease, 20)
        assert sorted(await checkpoints_of(world)) == [10, 20]
        await add(world, head.name)
        assert sorted(await checkpoints_of(world)) == [20]

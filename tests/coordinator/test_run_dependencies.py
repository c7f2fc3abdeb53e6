"""`after: runs/x`: a run that waits until another has succeeded."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import struct_pb2
from grpc import aio

from coordinator.commands import run_dependencies
from relay.v1 import agents_pb2, runs_pb2
from storage.base import StoreUnavailable
from tests.coordinator.agent_client import STOPPED, SUCCEEDED, ScriptedAgent, connected, failed
from tests.coordinator.fleet import World, reason
from tests.coordinator.test_initial_weights import WHOLE, contents, put_folder, save, write_files

TUNED: dict[str, Any] = {"version": "relay/v1", "method": "sft", "data": {"train": "rows.jsonl"}}


async def follow(world: World, name: str = "next", **more: Any) -> runs_pb2.CreateRunResponse:
    """Submits a run that comes after `x`."""
    spec = struct_pb2.Struct()
    spec.update({**TUNED, "name": name, "after": "runs/x", "model": {"name_or_path": "a/b"}, **more})
    return await world.replica.runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec))


async def begin(world: World, agent: ScriptedAgent) -> str:
    """`x` runs; its lease."""
    await world.submit("x")
    lease = (await agent.take()).lease
    await agent.start(lease)
    return lease


async def ended(world: World, name: str = "next") -> runs_pb2.Run:
    """The run, once it is over."""
    async for _ in world.replica.runs.WatchRun(runs_pb2.WatchRunRequest(name=f"runs/{name}"), timeout=90):
        pass
    return await world.run(name)


async def refusal(world: World, **more: Any) -> str:
    with pytest.raises(aio.AioRpcError) as refused:
        await follow(world, **more)
    assert reason(refused.value) == "SPEC_INVALID"
    return str(refused.value.details())


async def test_it_waits_though_a_host_is_free_and_goes_when_the_other_has_succeeded(world: World) -> None:
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        lease = await begin(world, a)
        created = await follow(world)
        assert created.placement == "waits until runs/x has succeeded"
        assert (await world.run("next")).reason == "waits until runs/x has succeeded"
        await world.submit("free")  # planned later, and granted: so the other one was passed over
        assert "runs/free/" in (await b.take()).lease
        await a.complete(lease, **SUCCEEDED)
        assert "runs/next/" in (await a.next_lease()).lease
        assert ("state", "runs/x has succeeded: the run no longer waits for it") in await world.history("next")


async def test_it_begins_with_what_the_other_has_then(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        lease = await begin(world, a)
        await save(world, a, lease, 10, WHOLE)
        created = await follow(world, model={"init_from": "runs/x"})
        latest = await follow(world, "other", model={"init_from": "x@latest"})
        assert not created.run.inputs and not latest.run.pins
        digest = await put_folder(world, {**WHOLE, "model.safetensors": b"the last"})
        output = runs_pb2.Output(manifest_digest=digest, files=3, size=20)
        await a.complete(lease, succeeded=agents_pb2.Succeeded(output=output))
        taken = await a.next_lease()
        run = await world.run("next")
        assert taken.lease.startswith("runs/next/")
        assert contents(run) == write_files("init_from", {**WHOLE, "model.safetensors": b"the last"})
        assert run.pins["init_from"] == f"runs/x {digest}"
        assert contents(await world.run("other")) == write_files("init_from", WHOLE)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_it_does_not_wait_in_vain(world: World, how: str) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        lease = await begin(world, a)
        await follow(world)
        if how == "failed":
            await a.complete(lease, **failed(permanent=True))
        else:
            await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/x"))
            await a.complete(lease, **STOPPED)
        run = await ended(world)
        assert run.state == runs_pb2.Run.CANCELLED
        assert run.reason == f"it was to come after runs/x, which is {how}"
        assert f"after: runs/x has not succeeded, it is {how}" in await refusal(world, name="late")


async def test_weights_that_are_not_there_then(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        lease = await begin(world, a)
        await follow(world, model={"init_from": "runs/x@30"})
        await a.complete(lease, **SUCCEEDED)
        run = await ended(world)
        assert 'model.init_from: "runs/x@30" cannot be used: x has no checkpoint' in run.reason


class Away:
    """A store that cannot be reached."""

    def read(self, digest: str, limit: int, /) -> bytes:
        raise StoreUnavailable("the bucket is away")


async def test_a_store_that_is_away_is_waited_for(world: World) -> None:
    """The round ends well, the run waits on, and the next that happens in the queue is another round."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        lease = await begin(world, a)
        await save(world, a, lease, 10, WHOLE)
        await follow(world, model={"init_from": "runs/x@10"})
        async with world.db.connection() as conn:  # without a word to the coordinator's own follower
            await conn.execute("UPDATE runs SET state = 'succeeded' WHERE id = 'x'")
        await run_dependencies.release_dependents(world.db, Away())
        assert (await world.run("next")).state == runs_pb2.Run.QUEUED
        await world.submit("free", resources={"gpus_per_node": 8})
        assert "runs/next/" in (await b.take()).lease


async def test_what_it_could_not_wait_for_is_refused(world: World) -> None:
    assert "after: there is no run x" in await refusal(world)
    assert "after: runs/x is this run itself" in await refusal(world, name="x")
    assert "after: it waits for a run as a whole: runs/x" in await refusal(world, after="runs/x@best")


async def test_after_what_is_over_it_goes_at_once(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        lease = await begin(world, a)
        await a.complete(lease, **SUCCEEDED)
        created = await follow(world)
        assert "waits" not in created.placement
        assert "runs/next/" in (await a.next_lease()).lease


async def test_cancelled_while_it_waits_and_queued_again(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        lease = await begin(world, a)
        await follow(world)
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/next"))
        spec = struct_pb2.Struct()
        spec.update({**TUNED, "name": "next", "after": "runs/x", "model": {"name_or_path": "a/b"}})
        again = await world.replica.runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec, resume=True))
        assert again.run.state == runs_pb2.Run.QUEUED and again.placement == "waits until runs/x has succeeded"
        await a.complete(lease, **SUCCEEDED)
        assert "runs/next/" in (await a.next_lease()).lease

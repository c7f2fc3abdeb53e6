"""`model.init_from`: a run that begins with another's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf import struct_pb2
from grpc import aio

from relay.v1 import agents_pb2, artifacts_pb2, runs_pb2
from storage.manifest import Manifest, ManifestFile, digest_bytes
from tests.coordinator.agent_client import SUCCEEDED, ScriptedAgent, connected
from tests.coordinator.fleet import World, reason

WHOLE = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"t"}
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"small", "tokenizer.json": b"t"}
STATE = {"optimizer.pt": b"moments", "trainer_state.json": b"{}", "relay_state.json": b"{}", "rank_00000.json": b"{}"}
BASE = {"config.json": b"base", "model.safetensors": b"base weights"}
KEEP = {"checkpoint": {"keep": {"metric": "eval_loss"}}}


async def put(world: World, data: bytes) -> str:
    header = artifacts_pb2.PutBlobHeader(digest=digest_bytes(data), size=len(data))
    messages = [artifacts_pb2.PutBlobRequest(header=header), artifacts_pb2.PutBlobRequest(chunk=data)]
    await world.replica.artifacts.PutBlob(iter(messages))
    return digest_bytes(data)


async def put_folder(world: World, files: Mapping[str, bytes]) -> str:
    """Into the coordinator's own store; the manifest's digest."""
    entries = [ManifestFile(path, len(data), await put(world, data)) for path, data in sorted(files.items())]
    return await put(world, Manifest(tuple(entries)).to_bytes())


async def save(world: World, agent: ScriptedAgent, lease: str, step: int, files: Mapping[str, bytes]) -> str:
    """A checkpoint with a copy in the coordinator's store; its manifest's digest."""
    digest = await put_folder(world, files)
    saved = await agent.save(lease, step, digest=digest)
    copy = runs_pb2.Copy(store="relay", uri=f"relay://{digest}")
    await agent.stub.AddCopy(agents_pb2.AddCopyRequest(lease=lease, checkpoint=saved.name, copy=copy))
    return digest


async def submit(world: World, point: str, name: str = "new", **request: Any) -> runs_pb2.Run:
    spec = struct_pb2.Struct()
    data = {"train": "rows.jsonl"}
    spec.update({"version": "relay/v1", "method": "sft", "name": name, "model": {"init_from": point}, "data": data})
    return (await world.replica.runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec, **request))).run


async def refusal(world: World, point: str, **request: Any) -> str:
    with pytest.raises(aio.AioRpcError) as refused:
        await submit(world, point, **request)
    assert reason(refused.value) == "SPEC_INVALID"
    return str(refused.value.details())


def contents(run: runs_pb2.Run) -> dict[str, str]:
    return {each.path: each.digest for each in run.inputs}


def write_files(folder: str, files: Mapping[str, bytes]) -> dict[str, str]:
    return {f"{folder}/{path}": digest_bytes(data) for path, data in files.items()}


async def test_its_files_become_inputs_without_the_trainers_state(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit("x", **KEEP)
        lease = (await a.take()).lease
        await a.start(lease)
        digests = {step: await save(world, a, lease, step, {**WHOLE, **STATE, "s": b"%d" % step}) for step in (10, 20)}
        rehearsed = await submit(world, "runs/x@10", validate_only=True)
        assert contents(rehearsed) == write_files("init_from", WHOLE)
        run = await submit(world, "runs/x@latest")
        assert contents(run) == write_files("init_from", WHOLE)
        assert run.pins["init_from"] == f"runs/x@20 {digests[20]}"
        assert run.spec["model"]["init_from"] == "runs/x@latest"  # type: ignore[index]
        assert {each.size for each in run.inputs} == {2, 7, 1}


async def test_the_result_and_the_best_checkpoint(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit("x", **KEEP)
        lease = (await a.take()).lease
        await a.start(lease)
        assert "is running and has no result; x@latest is its head" in await refusal(world, "x")
        assert "no checkpoint of any step yet; it has none" in await refusal(world, "x@latest")
        for step in (10, 20):
            await save(world, a, lease, step, {**WHOLE, "s": b"%d" % step})
        assert "no checkpoint with a value of eval_loss; it has 10, 20" in await refusal(world, "x@best")
        async with world.db.connection() as conn:
            await conn.execute("UPDATE checkpoints SET metrics = jsonb_build_object('eval_loss', step)")
        digest = await put_folder(world, {**WHOLE, "relay.json": b"{}", "model.safetensors": b"the last"})
        output = runs_pb2.Output(manifest_digest=digest, files=4, size=20)
        await a.complete(lease, succeeded=agents_pb2.Succeeded(output=output))
        assert (await submit(world, "x@best")).pins["init_from"].startswith("runs/x@10 ")
        result = await submit(world, "x", "newer")
        assert contents(result) == write_files("init_from", {**WHOLE, "model.safetensors": b"the last"})
        assert result.pins["init_from"] == f"runs/x {digest}"


async def test_an_adapter_brings_the_base_that_travelled_with_its_run(world: World) -> None:
    """Also when the run that made it had itself started with another's adapter, or whole model."""
    inputs = [runs_pb2.Input(path=f"m/{path}", digest=await put(world, data)) for path, data in BASE.items()]
    async with connected(world.replica.agents, "a") as [a]:
        spec = struct_pb2.Struct()
        spec.update({"version": "relay/v1", "method": "sft", "name": "x", "data": {"train": "rows.jsonl"}})
        spec.update({"model": {"name_or_path": "./m"}, "lora": {"r": 4}})
        await world.replica.runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec, inputs=inputs))
        lease = (await a.take()).lease
        await a.start(lease)
        await save(world, a, lease, 10, {**ADAPTER, **STATE})
        await a.complete(lease, **SUCCEEDED)
        expected = write_files("init_from", ADAPTER) | write_files("init_from/base", BASE)
        assert contents(await submit(world, "x@10", "y")) == expected

        lease = (await a.next_lease()).lease
        await a.start(lease)
        await save(world, a, lease, 5, {**ADAPTER, "adapter_model.safetensors": b"more"})
        await save(world, a, lease, 6, WHOLE)
        more = write_files("init_from", {**ADAPTER, "adapter_model.safetensors": b"more"})
        assert contents(await submit(world, "y@5", "z")) == more | write_files("init_from/base", BASE)
        assert contents(await submit(world, "y@6", "whole")) == write_files("init_from", WHOLE)


async def test_what_cannot_be_begun_with_says_why(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        assert "there is no run nobody" in await refusal(world, "nobody@latest")
        assert "RUN@STEP" in await refusal(world, "x@newest")
        await world.submit("x")
        lease = (await a.take()).lease
        await a.start(lease)
        await a.save(lease, 10)
        only = await refusal(world, "x@10")
        assert "no copy in the coordinator's store (only host); bring it: relayctl push x@10 --to relay://" in only
        await save(world, a, lease, 20, {"iter/model_rng.pt": b"a program's own"})
        assert "runs/x@20 holds no model" in await refusal(world, "x@20")
        await save(world, a, lease, 25, {"config.json": b"{}", "pytorch_model_fsdp_0/__0_0.distcp": b"a shard"})
        assert "runs/x@25 holds no model that could be loaded (no weights beside" in await refusal(world, "x@25")
        assert "no checkpoint of step 30; it has 10, 20, 25" in await refusal(world, "x@30")
        assert "no metric" in await refusal(world, "x@best")
        mine = runs_pb2.Input(path="init_from/config.json", digest=await put(world, b"mine"))
        assert "init_from/config.json is in the way" in await refusal(world, "x@20", inputs=[mine])
    with pytest.raises(aio.AioRpcError) as gone:
        await world.run("new")
    assert reason(gone.value) == "RUN_UNKNOWN"


async def test_what_was_found_once_stays(world: World) -> None:
    """S9: a repeated request is the same run whatever became of the other; queued again it keeps its beginning."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit("x")
        lease = (await a.take()).lease
        await a.start(lease)
        await save(world, a, lease, 10, WHOLE)
        run = await submit(world, "x@latest", request_id="mine")
        await save(world, a, lease, 20, {**WHOLE, "model.safetensors": b"later"})
        async with world.db.connection() as conn:
            await conn.execute("UPDATE checkpoints SET remove_time = clock_timestamp() WHERE step = 10")
        again = await submit(world, "x@latest", request_id="mine")
        assert (again.inputs, again.pins) == (run.inputs, run.pins)
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/new"))
        queued = await submit(world, "x@latest", resume=True)
        assert (queued.state, queued.inputs, queued.pins) == (runs_pb2.Run.QUEUED, run.inputs, run.pins)

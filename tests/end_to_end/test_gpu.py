"""A GPU host end to end: seen, trained on, vanished from, and free again. Skipped where there is none."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from relay.v1 import runs_pb2 as pb
from tests import tiny
from tests.end_to_end.fleet import Fleet
from tests.gpu import needs_gpu

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), needs_gpu]

SPEC: dict[str, Any] = {
    "method": "sft",
    "model": {"name_or_path": "./model"},
    "data": {"train": "train.jsonl"},
    "options": {"max_steps": 400, "logging_steps": 5, "per_device_train_batch_size": 2, "max_length": 32},
    "checkpoint": {"every": "20 steps"},
    "resources": {"gpus_per_node": 1, "vram_gib": 8},
    "seed": 7,
}


@pytest.fixture
def submitter(fleet: Fleet, tiny_model: Path) -> Path:
    """Where the run files lie, beside a model and its rows."""
    folder = fleet.folder / "submitter"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    tiny.make_rows(folder / "train.jsonl")
    return folder


def on_the_gpu() -> set[int]:
    """Processes that have some of its memory, by the driver."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    finally:
        pynvml.nvmlShutdown()


async def weights(fleet: Fleet, name: str) -> dict[str, str]:
    """Digests of the weights of a run's result."""
    folder = fleet.folder / "pulled" / name
    await fleet.relayctl("pull", name, str(folder))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


async def test_a_gpu_host_is_seen_and_trained_on(fleet: Fleet, submitter: Path) -> None:
    """C1: GPUs, their memory and the driver, by NVML; a run that wants a GPU gets that one."""
    await fleet.host("a")
    shown = await fleet.relayctl("agents", "-o", "yaml")
    assert "memory_bytes" in shown and "cuda:" in shown and "driver:" in shown, shown
    run = await fleet.submit(SPEC, "on-a-gpu")
    assert (await run.ended()).state == pb.Run.SUCCEEDED
    curve = await run.curve()
    assert max(value for _, value in curve["gpu_memory_allocated_gb"]) > 0


async def test_a_vanished_gpu_host_leaves_no_trace_in_the_result(fleet: Fleet, submitter: Path) -> None:
    """One curve and the weights of a run that was never disturbed; and its GPU is free at once (S6, S7)."""
    before = await asyncio.to_thread(on_the_gpu)
    first = await fleet.host("a")
    run = await fleet.submit(SPEC, "disturbed")
    await run.checkpoint(100)
    await first.vanish()
    assert await asyncio.to_thread(on_the_gpu) <= before
    await fleet.host("b")
    assert (await run.ended()).state == pb.Run.SUCCEEDED
    _, resumed = await run.attempts()
    assert resumed.resumed_step >= 100

    straight = await fleet.submit(SPEC, "straight")
    assert (await straight.ended()).state == pb.Run.SUCCEEDED
    assert await weights(fleet, "disturbed") == await weights(fleet, "straight") != {}
    curve, expected = await run.curve(), await straight.curve()
    assert [step for step, _ in curve["train_loss"]] == list(range(5, 401, 5))
    for name in ("train_loss", "grad_norm", "num_tokens"):
        assert curve[name] == expected[name], name

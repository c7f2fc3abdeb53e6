"""Fine-tuning end to end: model and data are uploaded, the host vanishes, and the result is as if it had not."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from relay.v1 import runs_pb2 as pb
from tests import tiny
from tests.end_to_end.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.rotating(3, of="end to end")]

STEPS = 150
SPEC: dict[str, Any] = {
    "method": "sft",
    "model": {"name_or_path": "./model"},
    "data": {"train": "train.jsonl"},
    "options": {"max_steps": STEPS, "logging_steps": 5, "per_device_train_batch_size": 2, "max_length": 32},
    "checkpoint": {"every": "20 steps"},
    "env": {"OMP_NUM_THREADS": "1"},  # what a tiny model needs
    "seed": 7,
}
OF_TIME = ("per_second", "runtime", "gpu_", "time")


@pytest.fixture
def submitter(fleet: Fleet, tiny_model: Path) -> Path:
    """Where the run files lie, beside a model and its rows."""
    folder = fleet.folder / "submitter"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    tiny.make_rows(folder / "train.jsonl")
    return folder


async def result(fleet: Fleet, name: str) -> dict[str, str]:
    """Digests of the files of a run's result."""
    folder = fleet.folder / "pulled" / name
    await fleet.relayctl("pull", name, str(folder))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix == ".safetensors"
    }


async def test_a_vanished_host_leaves_no_trace_in_the_result(fleet: Fleet, submitter: Path) -> None:
    """One curve, and weights and logged values bit for bit those of a run that was never disturbed (S6, S7, F4)."""
    first = await fleet.host("a")
    run = await fleet.submit(SPEC, "disturbed")
    await run.checkpoint(40)
    await first.vanish()
    await fleet.host("b")
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED, ended.error
    _, resumed = await run.attempts()
    assert resumed.resumed_step >= 40
    assert (resumed.fidelity, list(resumed.fidelity_reasons)) == (pb.Attempt.EXACT, [])

    straight = await fleet.submit(SPEC, "straight")
    assert (await straight.ended()).state == pb.Run.SUCCEEDED
    assert len(await straight.attempts()) == 1

    weights = await result(fleet, "disturbed")
    assert weights and weights == await result(fleet, "straight")
    curve, expected = await run.curve(), await straight.curve()
    assert [step for step, _ in curve["train_loss"]] == list(range(5, STEPS + 1, 5))
    for metric in set(curve) | set(expected):
        if not any(word in metric for word in OF_TIME):
            assert curve[metric] == expected[metric], metric


async def test_a_wrong_option_that_only_the_library_sees_is_not_retried(fleet: Fleet, submitter: Path) -> None:
    await fleet.host("a")
    (submitter / "train.jsonl").write_text('{"unrelated": 1}\n')
    run = await fleet.submit(SPEC, "wrong")
    ended = await run.ended()
    assert ended.state == pb.Run.FAILED and ended.attempts == 1
    assert "unrelated" in ended.error.message or "train.jsonl" in ended.error.message


async def test_a_run_begins_with_what_another_has_trained(fleet: Fleet, submitter: Path) -> None:
    """Weights and base model reach another host, and the new run begins where the other ended; two curves."""
    first = await fleet.host("a")
    lora = {"r": 4, "target_modules": "all-linear"}
    options = {**SPEC["options"], "max_steps": 20, "eval_steps": 20, "eval_on_start": True, "learning_rate": 3e-2}
    spec = {**SPEC, "lora": lora, "options": options, "data": {**SPEC["data"], "eval": {"split": 0.2}}}
    run = await fleet.submit(spec, "teacher")
    assert (await run.ended()).state == pb.Run.SUCCEEDED
    learnt = dict((await run.curve())["eval_loss"])
    assert learnt[20] < learnt[0]
    await first.vanish()

    await fleet.host("b")
    (submitter / "model" / "model.safetensors").unlink()  # it is not the submitter that brings it
    after = await fleet.submit({**spec, "model": {"init_from": "runs/teacher@latest"}}, "pupil")
    ended = await after.ended()
    assert ended.state == pb.Run.SUCCEEDED, ended.error
    assert ended.pins["init_from"].startswith("runs/teacher@20 sha256:")
    assert dict((await after.curve())["eval_loss"])[0] == pytest.approx(learnt[20], rel=1e-5)
    again = await fleet.relayctl("submit", str(submitter / "pupil.yaml"))
    assert re.search(r"^starts from +runs/teacher@20: \d+ files", again, re.MULTILINE), again
    assert "had been submitted already" in again

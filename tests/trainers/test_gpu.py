"""What only a GPU can show: a run interrupted on CUDA, and running out of its memory. Skipped without a GPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import needs_gpu
from tests.trainers import attempts

pytestmark = needs_gpu

LORA = {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp32": {"options": {"bf16": False}},
    "lora": {"lora": LORA},
    "packing": {"options": {"packing": True, "max_length": 64}},
    "accumulating": {"options": {"gradient_accumulation_steps": 3}},
    "recomputing": {"options": {"gradient_checkpointing": True}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cut_gives_the_straight_run(run: dict[str, Any], tmp_path: Path, variant: str) -> None:
    """S6. Interrupted beside a logging step, and at an epoch's end."""
    changed = VARIANTS[variant]
    run = run | changed | {"options": run["options"] | changed.get("options", {})}
    straight = attempts.make(tmp_path / "straight", run | {"checkpoint": {"every": "1 steps"}})
    assert straight.code == 0, (straight.folder / "stderr.log").read_text()
    for cut in (7, 11):
        resumed = attempts.make(tmp_path / f"cut-{cut}", run, resume=straight.checkpoint(cut))
        assert (resumed.code, resumed.weights()) == (0, straight.weights()), cut
        for (step, name), value in resumed.curve.items():
            assert name.startswith("gpu_") or value == straight.curve[step, name], (cut, step, name)


def test_a_straight_run_is_itself_again(run: dict[str, Any], tmp_path: Path) -> None:
    """Without this, a comparison with an interrupted run would mean nothing."""
    first, second = (attempts.make(tmp_path / name, run) for name in ("first", "second"))
    assert first.weights() == second.weights()
    assert {"gpu_memory_allocated_gb", "gpu_utilization_percent"} <= {name for _, name in first.curve}


def almost_no_memory() -> None:
    """Limit this process to a few megabytes of the GPU's memory."""
    import torch

    torch.cuda.set_per_process_memory_fraction(0.0002)


def test_out_of_memory_is_said_as_such(run: dict[str, Any], tmp_path: Path) -> None:
    """F1: the library's own error, in one line that hosts and users recognise."""
    run["options"] |= {"per_device_train_batch_size": 32, "max_length": 256}
    attempt = attempts.make(tmp_path / "large", run, before=almost_no_memory)
    assert attempt.code == 1 and attempt.outcome is not None
    assert attempt.outcome.message.startswith("CUDA out of memory"), attempt.outcome

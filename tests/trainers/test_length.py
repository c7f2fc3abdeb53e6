"""A run that trains fewer steps than were planned, without having been asked to stop, is no success."""

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainers import attempts
from tests.trainers.specs import METHODS, spec
from trainers.launch.control import REFUSED

TOO_FEW = "data.train: one batch takes {} {}, and there are {}; give more rows, or a smaller options.per_device"
#: A method with options and data, its number of rows, and what it says.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int, str]] = {
    **{
        method: (method, {"per_device_train_batch_size": 8}, {}, 1, TOO_FEW.format(2, "prompts", 1))
        for method in ("grpo", "rloo")
    },
    "distillation": ("distillation", {"per_device_train_batch_size": 8}, {}, 7, TOO_FEW.format(8, "prompts", 7)),
    "ppo": ("ppo", {}, {}, 7, "a rollout takes 8 prompts"),
    "epochs": (
        "grpo",
        {"per_device_train_batch_size": 8, "max_steps": -1, "num_train_epochs": 3},
        {},
        1,
        TOO_FEW.format(2, "prompts", 1),
    ),
    "whole batches": ("sft", {"dataloader_drop_last": True}, {}, 3, TOO_FEW.format(4, "rows", 3)),
    "a stream of too long rows": (
        "sft",
        {"max_length": 2},
        {"streaming": True},
        8,
        "data.train: training ended at step 0 of 6, since the rows gave no more batches",
    ),
}


@pytest.mark.rotating(2)
@pytest.mark.parametrize("case", CASES)
def test_rows_that_give_no_step_are_refused(case: str, work: Path, tmp_path: Path) -> None:
    method, options, data, count, said = CASES[case]
    run = spec(work, method, options=options)
    kind = "prompt_completion" if method == "sft" else METHODS[method][0]
    tiny.make_rows(tmp_path / "rows.jsonl", count=count, kind=kind)
    run["data"] = {"train": [{"path": str(tmp_path / "rows.jsonl")}], **data}
    del run["options"]["eval_steps"]
    attempt = attempts.make(tmp_path / "attempt", run)
    assert attempt.outcome is not None and attempt.outcome.code == REFUSED, attempt.outcome
    assert said in attempt.outcome.message
    assert not (attempt.folder / "output").exists() and attempt.steps_saved == []

"""Rows of which `max_length` leaves nothing to learn are left out and counted, whatever the method."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainers import attempts
from tests.trainers.specs import METHODS, spec
from trainers.launch.control import REFUSED, SUCCEEDED

LONG = "9" * 40 + " ="  #: a question that fills `max_length` by itself
ROWS: dict[str, dict[str, Any]] = {
    "prompt_completion": {"prompt": LONG, "completion": " 9"},
    "preference": {"prompt": LONG, "chosen": " 9", "rejected": " 8"},
    "unpaired_preference": {"prompt": LONG, "completion": " 9", "label": True},
    #: `gkd` keeps the end of a dialogue, so it is the answer that leaves nothing of the question
    "chat": {"messages": [{"role": "user", "content": "9 ="}, {"role": "assistant", "content": LONG}]},
}
#: A method, its options, and what it calls the rows.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "sft": ("sft", {}, "1 of 49 rows"),
    "sft, packed": ("sft", {"packing": True, "per_device_train_batch_size": 1}, "1 of 46 packed sequences"),
    "dpo": ("dpo", {}, "1 of 49 rows"),
    "orpo": ("orpo", {}, "1 of 49 rows"),
    "cpo": ("cpo", {}, "1 of 49 rows"),
    "simpo": ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0}, "1 of 49 rows"),
    "kto": ("kto", {}, "1 of 49 rows"),
    "reward": ("reward", {}, "1 of 49 rows"),
    "gkd": ("gkd", {}, "1 of 49 rows"),
}


def _run(case: str, work: Path, folder: Path, *, count: int) -> dict[str, Any]:
    """Return a run of one epoch on `count` rows that fit and one that does not, which is held out too."""
    method, options, _ = CASES[case]
    kind = "prompt_completion" if method == "sft" else METHODS[method][0]
    file = tiny.make_rows(folder / "rows.jsonl", count=count, kind=kind)
    with file.open("a") as rows:
        rows.write(json.dumps(ROWS[kind]) + "\n")
    run = spec(work, method, options={"max_length": 24, "max_steps": -1, "num_train_epochs": 1, **options})
    run["data"] = {"train": [{"path": str(file)}], "eval": [{"path": str(file)}]}
    run["checkpoint"] = {"every": "100 steps"}
    run["options"]["eval_steps"] = 100
    return run


@pytest.mark.rotating(5)
@pytest.mark.parametrize("case", CASES)
def test_a_row_that_is_cut_away_entirely_is_left_out(case: str, work: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    attempt = attempts.make(tmp_path / "attempt", _run(case, work, tmp_path, count=48))
    assert attempt.outcome is not None and attempt.outcome.code == SUCCEEDED, attempt.outcome
    weights = load_file(attempt.folder / "output" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    said = "\n".join(attempt.messages("warning"))
    for name in ("data.train", "data.eval"):
        assert f"{name}: {CASES[case][2]} are left out, since" in said and "options.max_length (24)" in said, said


@pytest.mark.rotating(5)
@pytest.mark.parametrize("case", CASES)
def test_a_run_of_nothing_but_such_rows_is_refused(case: str, work: Path, tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "attempt", _run(case, work, tmp_path, count=0))
    assert attempt.outcome is not None and attempt.outcome.code == REFUSED, attempt.outcome
    assert "data.train: no row has anything left to learn within options.max_length 24" in attempt.outcome.message

"""Checkpoints of a plain Hugging Face Trainer, as `relayctl import` hands them over, resumed by Relay's trainers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import attempts
from tests.trainers.specs import spec

SEALED = "relay_state.json"


@pytest.fixture(scope="module")
def elsewhere(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint-2` and `checkpoint-4` of a plain Trainer, as it leaves them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    child = attempts.fork(lambda: _train(work, folder), folder / "log")
    assert attempts.ended(child) == 0, (folder / "log").read_text()
    return folder


def _train(work: Path, folder: Path) -> int:
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    rows = [json.loads(line) for line in (work / "text.jsonl").read_text().splitlines()]
    args = TrainingArguments(
        output_dir=str(folder), max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=4,
        learning_rate=1e-3, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(work / "model"),
        args=args,
        train_dataset=[tokenizer(row["text"]) for row in rows],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    return 0


def imported(checkpoint: Path, to: Path) -> Path:
    """Copy the checkpoint as an import does: without the pickle, and with the list of its files."""
    shutil.copytree(checkpoint, to, ignore=shutil.ignore_patterns("training_args.bin"))
    sizes = {path.name: path.stat().st_size for path in to.iterdir()}
    state = {"format": 1, "step": 4, "world": None, "identity": None, "files": sizes}
    (to / SEALED).write_text(json.dumps(state))
    return to


def longer(run: dict[str, Any], **more: Any) -> dict[str, Any]:
    return run | {"options": run["options"] | {"max_steps": 6, "logging_steps": 1, "eval_steps": 6}} | more


def test_ours_goes_on_where_another_trainer_stopped(elsewhere: Path, run: dict[str, Any], tmp_path: Path) -> None:
    point = imported(elsewhere / "checkpoint-4", tmp_path / "step_00000004")
    on = attempts.make(tmp_path / "on", longer(run), resume=point)
    assert on.code == 0, (on.outcome, (on.folder / "stderr.log").read_text())
    [said] = on.messages("warning")
    assert said.startswith("another trainer saved this checkpoint: training resumes, but not bit for bit; options")
    assert "optimizer" not in said
    assert [step for step, name in on.curve if name == "train_loss"] == [5, 6]
    before = [entry["loss"] for entry in _state(point)["log_history"] if "loss" in entry]
    after = [value for (_, name), value in on.curve.items() if name == "train_loss"]
    assert after[0] < before[0], "it begins where the other stopped, not at the beginning"
    mean = on.curve[6, "train_loss_mean"]
    assert mean == pytest.approx(sum(before + after) / 6, rel=1e-2)

    again = attempts.make(tmp_path / "again", longer(run), resume=on.checkpoint(6))
    assert (again.code, again.messages("warning")) == (0, []), "what ours saved is ours"


def test_its_optimizer_goes_on_too(elsewhere: Path, run: dict[str, Any], tmp_path: Path) -> None:
    """Without the optimizer the next losses differ, and a warning says so."""
    point = imported(elsewhere / "checkpoint-4", tmp_path / "step_00000004")
    bare = tmp_path / "bare" / "step_00000004"
    shutil.copytree(elsewhere / "checkpoint-4", bare.parent / "checkpoint-4")
    for name in ("optimizer.pt", "scheduler.pt"):
        os.unlink(bare.parent / "checkpoint-4" / name)
    imported(bare.parent / "checkpoint-4", bare)
    whole, without = (attempts.make(tmp_path / n, longer(run), resume=p) for n, p in (("whole", point), ("less", bare)))
    assert (whole.code, without.code) == (0, 0)
    assert whole.curve[6, "train_loss"] != without.curve[6, "train_loss"]
    assert "it has no optimizer, which begins anew" in without.messages("warning")[0]


def test_values_begin_anew_where_another_trainer_had_none(elsewhere: Path, work: Path, tmp_path: Path) -> None:
    """The optimizer cannot be restored: it lacks weights that are trained now."""
    point = imported(elsewhere / "checkpoint-4", tmp_path / "step_00000004")
    on = attempts.make(tmp_path / "on", longer(spec(work, "ppo")), resume=point)
    assert on.code == 0, (on.outcome, (on.folder / "stderr.log").read_text())
    assert "it has no value head, which begins anew, and so does the optimizer" in on.messages("warning")[0]
    assert [step for step, name in on.curve if name == "train_loss"] == [5, 6]


def test_all_weights_are_no_adapter(elsewhere: Path, run: dict[str, Any], tmp_path: Path) -> None:
    point = imported(elsewhere / "checkpoint-4", tmp_path / "step_00000004")
    wrong = attempts.make(tmp_path / "wrong", longer(run, lora={"r": 4, "target_modules": "all-linear"}), resume=point)
    assert wrong.outcome is not None and wrong.code == 78
    assert "step_00000004 holds all weights, and the run trains an adapter" in wrong.outcome.message


def test_a_file_of_it_that_is_not_whole_is_noticed(elsewhere: Path, run: dict[str, Any], tmp_path: Path) -> None:
    point = imported(elsewhere / "checkpoint-4", tmp_path / "step_00000004")
    (point / "optimizer.pt").write_bytes(b"half")
    wrong = attempts.make(tmp_path / "wrong", longer(run), resume=point)
    assert wrong.outcome is not None and "optimizer.pt has the wrong size" in wrong.outcome.message


def _state(point: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((point / "trainer_state.json").read_text())
    return state

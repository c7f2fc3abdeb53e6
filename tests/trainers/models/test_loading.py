"""Training that begins with another run's weights: whole models, adapters trained further, adapters merged."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import attempts
from trainers.launch.control import REFUSED

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def adapter(work: Path, tmp_path_factory: pytest.TempPathFactory) -> attempts.Attempt:
    """A run that has trained an adapter on the tiny model, and learnt."""
    spec = {**spec_of(work, str(work / "model")), "lora": LORA}
    return attempts.make(tmp_path_factory.mktemp("adapter") / "a", spec)


def spec_of(work: Path, model: str | None = None) -> dict[str, Any]:
    return {
        "version": "relay/v1",
        "method": "sft",
        "model": {"name_or_path": model} if model else {"init_from": "runs/x@6"},
        "data": {"train": [{"path": str(work / "rows.jsonl")}], "eval": {"split": 0.1}},
        "options": {
            "max_steps": 6,
            "logging_steps": 2,
            "eval_steps": 6,
            "eval_on_start": True,
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-2,
            "gradient_checkpointing": False,
        },
        "checkpoint": {"every": "3 steps"},
    }


def make_work_folder(tmp_path: Path, files: Path, base: Path | None = None) -> partial[None]:
    """Fill the run's working folder with what the coordinator puts there, and enter it."""
    shutil.copytree(files, tmp_path / "init_from")
    if base:
        shutil.copytree(base, tmp_path / "init_from" / "base")
    return partial(os.chdir, tmp_path)


def loss(attempt: attempts.Attempt, step: int) -> float:
    return float(attempt.curve[step, "eval_loss"])


def test_an_adapter_is_gone_on_with(work: Path, adapter: attempts.Attempt, tmp_path: Path) -> None:
    """It begins where the other run ended, its result is an adapter of the same base, and an interruption leaves no
    trace.
    """
    assert loss(adapter, 6) < loss(adapter, 0) - 0.1
    before = make_work_folder(tmp_path, adapter.folder / "output", work / "model")
    spec = {**spec_of(work), "lora": LORA}
    made = attempts.make(tmp_path / "b", spec, before=before)
    assert made.code == 0, made.outcome
    assert loss(made, 0) == pytest.approx(loss(adapter, 6), rel=1e-6)
    config = json.loads((made.folder / "output" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(work / "model"), 4)
    assert json.loads((made.folder / "output" / "relay.json").read_text())["init_from"] == "runs/x@6"

    again = attempts.make(tmp_path / "again", spec, resume=made.checkpoint(3), before=before)
    assert again.code == 0, again.outcome
    assert again.weights() == made.weights()


def test_an_adapter_is_merged_where_all_weights_are_trained(
    work: Path, adapter: attempts.Attempt, tmp_path: Path
) -> None:
    before = make_work_folder(tmp_path, adapter.folder / "output", work / "model")
    made = attempts.make(tmp_path / "b", spec_of(work), before=before)
    assert made.code == 0, made.outcome
    assert loss(made, 0) == pytest.approx(loss(adapter, 6), rel=1e-4)
    assert (made.folder / "output" / "model.safetensors").is_file()
    whole = tmp_path / "whole"
    whole.mkdir()
    after = attempts.make(whole / "c", spec_of(work), before=make_work_folder(whole, made.folder / "output"))
    assert loss(after, 0) == pytest.approx(loss(made, 6), rel=1e-6)
    assert "tokenizer.json" in os.listdir(after.folder / "output")


def test_another_adapter_than_the_one_it_begins_with_is_refused(
    work: Path, adapter: attempts.Attempt, tmp_path: Path
) -> None:
    before = make_work_folder(tmp_path, adapter.folder / "output", work / "model")
    made = attempts.make(tmp_path / "b", {**spec_of(work), "lora": {**LORA, "r": 16}}, before=before)
    assert made.code == REFUSED and made.outcome is not None
    assert "has r: 4, not 16; lora must ask for the same, or be left out" in made.outcome.message


def preferring(work: Path, method: str, **changes: Any) -> dict[str, Any]:
    """Return a run of preferences, logged and saved as in `spec_of`, without dropout, which makes any two passes
    differ.
    """
    kind = "unpaired_preference" if method == "kto" else "preference"
    rows = {"train": [{"path": str(work / f"{kind}.jsonl")}]}
    spec = {**spec_of(work), "method": method, "data": rows, "model_init": {"attention_dropout": 0.0}, **changes}
    evaluation = {"eval_steps", "eval_on_start"}
    options = {name: value for name, value in spec["options"].items() if name not in evaluation}
    return {**spec, "options": {**options, "logging_steps": 1}}


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("lora", [LORA, None])
def test_the_reference_is_what_it_began_with(
    work: Path, adapter: attempts.Attempt, tmp_path: Path, method: str, lora: dict[str, Any] | None
) -> None:
    """Not the bare base: before the first step nothing is preferred to the reference. The same holds after an
    interruption.
    """
    before = make_work_folder(tmp_path, adapter.folder / "output", work / "model")
    spec = preferring(work, method, **({"lora": lora} if lora else {}))
    made = attempts.make(tmp_path / "b", spec, before=before)
    assert made.code == 0, made.outcome
    rewards = {key: value for key, value in made.curve.items() if key[1] in ("rewards/chosen", "rewards/rejected")}
    assert [value for (step, _), value in rewards.items() if step == 1] == pytest.approx([0, 0], abs=1e-6)
    assert max(map(abs, rewards.values())) > 1e-3
    assert not (made.folder / "output" / "ref").exists() and not (made.checkpoint(3) / "ref").exists()

    again = attempts.make(tmp_path / "again", spec, resume=made.checkpoint(3), before=before)
    assert again.code == 0, again.outcome
    assert again.weights() == made.weights()
    assert again.curve == {key: value for key, value in made.curve.items() if key[0] > 3}


def test_a_reward_model_goes_on_from_a_reward_model(work: Path, adapter: attempts.Attempt, tmp_path: Path) -> None:
    """Its adapter brings the head; the adapter of a language model, which has none, is refused."""
    rows = tmp_path / "easy.jsonl"
    rows.write_text('{"prompt": "Well?", "chosen": " yes", "rejected": " no"}\n' * 8)
    easy = {"data": {"train": [{"path": str(rows)}]}}
    fresh = {"model": {"name_or_path": str(work / "model")}, "lora": LORA, **easy}
    first = attempts.make(tmp_path / "first", preferring(work, "reward", **fresh))
    assert first.code == 0, first.outcome
    before = make_work_folder(tmp_path, first.folder / "output", work / "model")
    second = attempts.make(tmp_path / "second", preferring(work, "reward", lora=LORA, **easy), before=before)
    assert second.code == 0, second.outcome
    assert second.curve[1, "train_loss"] < first.curve[6, "train_loss"] < first.curve[1, "train_loss"] / 2
    merged = attempts.make(tmp_path / "merged", preferring(work, "reward", **easy), before=before)
    assert merged.curve[1, "train_loss"] == pytest.approx(second.curve[1, "train_loss"], rel=1e-3)

    other = tmp_path / "other"
    other.mkdir()
    refused = attempts.make(
        other / "run",
        preferring(work, "reward"),
        before=make_work_folder(other, adapter.folder / "output", work / "model"),
    )
    assert refused.code == REFUSED and refused.outcome is not None
    assert "its adapter was trained for CAUSAL_LM, and this method trains SEQ_CLS" in refused.outcome.message


def test_without_a_coordinator_nobody_finds_another_runs_weights(work: Path, tmp_path: Path) -> None:
    made = attempts.make(tmp_path / "b", spec_of(work), before=partial(os.chdir, tmp_path))
    assert made.code == REFUSED and made.outcome is not None
    assert "only a coordinator finds runs/x@6; without one, pull it and name its folder" in made.outcome.message

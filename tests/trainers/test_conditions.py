"""What is compared at a resume beside the run file: libraries, GPU, precision, and what lies on a host's disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainers import attempts, specs
from tests.trainers.deferred import deferred_imports

with deferred_imports():
    from trainers import conditions
    from trainers.models import hub
    from trainers.rewards import user_functions

NOW = {"torch": "2.13.0", "device": "NVIDIA H200", "precision": "bf16", "weights": "float32", "attention": "sdpa"}


@pytest.mark.parametrize(
    ("before", "fidelity", "said"),
    [
        (NOW, "exact", []),
        ({**NOW, "torch": "2.12.1"}, "close", ["torch was 2.12.1 and is 2.13.0"]),
        ({**NOW, "device": "CPU"}, "close", ["device was CPU and is NVIDIA H200"]),
        ({**NOW, "attention": "eager"}, "close", ["attention was eager and is sdpa"]),
        ({**NOW, "precision": "full"}, "changed", ["precision was full and is bf16"]),
        (
            {**NOW, "weights": "bfloat16", "torch": "2.12.1"},
            "changed",
            ["torch was 2.12.1 and is 2.13.0", "weights was bfloat16 and is float32"],
        ),
        ({name: value for name, value in NOW.items() if name != "torch"}, "exact", []),
        (None, "close", ["libraries, GPU, precision and attention were not recorded with the checkpoint"]),
    ],
)
def test_what_has_changed_decides_how_an_attempt_goes_on(
    before: dict[str, str] | None, fidelity: str, said: list[str]
) -> None:
    found = list(conditions.compare_conditions(before, NOW))
    assert (conditions.judge_fidelity(found), [each.text for each in found]) == (fidelity, said)


def test_tf32_is_read_however_it_was_set(tmp_path: Path) -> None:
    def check() -> None:
        import torch
        from transformers.utils.import_utils import enable_tf32

        assert conditions.read_tf32() == "off"
        enable_tf32(True)
        assert conditions.read_tf32() == "on"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert conditions.read_tf32() == "off"

    attempts.apart(check, tmp_path)


def test_a_model_is_known_by_its_files_and_not_by_its_folder(work: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str | None:
        return hub.digest_local_model(hub.ModelSource(str(folder), None, "model"))

    moved = Path(shutil.copytree(work / "model", tmp_path / "moved"))
    first = digest(work / "model")
    (moved / "README.md").write_text("told anew")
    (moved / "relay.json").write_text("{}")
    assert first is not None and digest(moved) == first
    other = digest(tiny.make_model(tmp_path / "other", seed=3))
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert len({first, other, digest(moved)}) == 3
    assert hub.digest_local_model(hub.ModelSource("org/tiny", "abc", "org/tiny")) is None


def test_code_is_known_by_its_file_and_by_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "parts").mkdir(parents=True)
    (home / "parts/__init__.py").write_text("from parts.deep import LENGTH\n")
    (home / "parts/deep.py").write_text("LENGTH = 3\n")
    (home / "unused.py").write_text("")
    (home / "rate.py").write_text("import json, parts\n\ndef score(completions): return [parts.LENGTH]\n")
    first = user_functions.digest_code(f"{home}/rate.py:score")
    (home / "unused.py").write_text("changed = True\n")
    shutil.copytree(home, away)
    assert user_functions.digest_code(f"{away}/rate.py:score") == first
    (away / "parts/deep.py").write_text("LENGTH = 4\n")
    assert user_functions.digest_code(f"{away}/rate.py:score") != first
    assert user_functions.digest_code("json:loads") == user_functions.digest_code("json.loads")


def _resume(attempt: attempts.Attempt) -> tuple[str, list[str]]:
    [event] = [event for event in attempt.events if event["type"] == "resume"]
    return event["fidelity"], event["reasons"]


def test_an_attempt_says_how_it_goes_on(run: dict[str, Any], tmp_path: Path) -> None:
    run["options"] |= {"max_steps": 2}
    first = attempts.make(tmp_path / "first", run | {"checkpoint": {"every": "1 steps"}})
    assert not [event for event in first.events if event["type"] == "resume"]
    assert _resume(attempts.make(tmp_path / "same", run, resume=first.checkpoint(1))) == ("exact", [])
    manifest = first.checkpoint(1) / "relay_state.json"
    told = json.loads(manifest.read_text())
    recorded = {"torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "relay-training"}
    assert recorded < told["conditions"].keys() and told["conditions"]["device"] == "CPU"
    told["conditions"] |= {"trl": "1.0", "weights": "bfloat16"}
    manifest.write_text(json.dumps(told))
    fidelity, reasons = _resume(attempts.make(tmp_path / "other", run, resume=first.checkpoint(1)))
    assert fidelity == "changed" and any(reason.startswith("trl was 1.0 and is ") for reason in reasons)
    assert "weights was bfloat16 and is float32" in reasons


@pytest.mark.slow
@pytest.mark.thorough
def test_another_model_in_the_same_folder_is_another_run(run: dict[str, Any], work: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(work / "model", tmp_path / "model"))
    run |= {"model": {"name_or_path": str(model)}, "checkpoint": {"every": "1 steps"}}
    run["options"] |= {"max_steps": 2}
    first = attempts.make(tmp_path / "first", run)
    elsewhere = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    moved = run | {"model": {"name_or_path": str(elsewhere)}}
    assert _resume(attempts.make(tmp_path / "moved", moved, resume=first.checkpoint(1))) == ("exact", [])
    tiny.make_model(model, seed=3)
    refused = attempts.make(tmp_path / "refused", run, resume=first.checkpoint(1))
    assert refused.code == 78 and "the contents of model have changed" in refused.messages("error")[0]


@pytest.mark.slow
@pytest.mark.thorough
def test_other_reward_code_is_another_run(work: Path, tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(specs.REWARDS)
    run = specs.spec(work, "rloo", options={"max_steps": 2}) | {"checkpoint": {"every": "1 steps"}}
    run |= {"rewards": [{"call": f"{rewards}:short"}], "files": [str(rewards)]}
    del run["data"]["eval"], run["options"]["eval_steps"]
    first = attempts.make(tmp_path / "first", run)
    assert first.code == 0
    rewards.write_text(specs.REWARDS.replace("/ 10", "/ 20"))
    refused = attempts.make(tmp_path / "refused", run, resume=first.checkpoint(1))
    assert refused.code == 78 and "the contents of rewards[0] have changed" in refused.messages("error")[0]

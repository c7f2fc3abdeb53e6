"""Model cards: metadata that is valid, and what they tell."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from runfile import parse_run_file
from runfile.model_card import AttemptSummary, CardFacts, render_card

SFT: dict[str, Any] = {
    "version": "relay/v1",
    "method": "sft",
    "model": {"name_or_path": "org/base"},
    "lora": {"r": 16, "target_modules": "all-linear"},
    "data": {"train": [{"path": "hf://org/rows"}, {"path": "train.jsonl"}], "eval": {"split": 0.02}},
    "options": {"learning_rate": 2e-4},
}


def facts(spec: dict[str, Any] = SFT, **more: Any) -> CardFacts:
    known: dict[str, Any] = {
        "run": parse_run_file(spec),
        "run_id": "sums",
        "attempt": 2,
        "lease": "a" * 32,
        "step": 100,
        "final": False,
        "library": "peft",
        "files": ["adapter_config.json"],
        "digest": "sha256:" + "1" * 64,
    }
    return CardFacts(**known | more)


def metadata(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_an_adapters_card() -> None:
    text = render_card(
        facts(
            metrics={"eval_loss": 0.42},
            inputs={"train.jsonl": "sha256:" + "2" * 64},
            pins={"model": "c" * 40, "data:org/rows": "d" * 40},
            attempts=[
                AttemptSummary(number=1, hosts=["a"], resumed_step=None, outcome="FAULTED"),
                AttemptSummary(number=2, hosts=["b", "c"], resumed_step=60, outcome="OUTCOME_UNSPECIFIED"),
            ],
            files=["curve.png"],
        ),
        "me/sums",
        "main",
    )
    assert metadata(text) == {
        "library_name": "peft",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "datasets": ["org/rows"],
        "pipeline_tag": "text-generation",
        "tags": ["relay", "sft", "lora"],
    }
    for line in (
        'AutoPeftModelForCausalLM.from_pretrained("me/sums")',
        "| eval_loss | 0.42 |",
        f"`org/base` at commit `{'c' * 40}`",
        f"| train.jsonl | `sha256:{'2' * 64}` |",
        f"| hf://org/rows | commit `{'d' * 40}` |",
        'options: {"learning_rate": 0.0002}',
        "| 1 | a | the beginning | lost its host |",
        "| 2 | b, c | step 60 | running |",
        "![The losses over the steps](curve.png)",
    ):
        assert line in text, line


def test_on_its_own_branch_it_is_loaded_from_there() -> None:
    assert 'from_pretrained("me/sums", revision="relay/sums/model")' in render_card(
        facts(), "me/sums", "relay/sums/model"
    )


def test_a_merged_model_beside_its_adapter() -> None:
    text = render_card(
        facts(files=["merged/config.json"], check="largest difference of a logit 1e-06"), "me/sums", "main"
    )
    assert 'subfolder="merged"' in text and "largest difference" in text


@pytest.mark.parametrize("name", ["./model", "/data/model", "../x", "a/b/c", "org/base: x\n- y"])
def test_a_base_model_that_is_not_on_the_hub_is_not_in_the_metadata(name: str) -> None:
    """The Hub refuses a card whose base model cannot be a model's name."""
    text = render_card(facts({**SFT, "model": {"name_or_path": name}}, library="transformers"), "me/sums", "main")
    assert "base_model" not in metadata(text)
    assert "AutoModelForCausalLM" in text


def test_a_programs_own_checkpoint_is_not_said_to_load() -> None:
    spec = {"version": "relay/v1", "method": "command", "command": ["train"]}
    text = render_card(facts(spec, library=""), "me/sums", "main")
    assert metadata(text) == {"tags": ["relay", "command"]}
    assert "How to load" not in text


def test_a_run_that_began_with_anothers_adapter_names_the_base_of_that() -> None:
    begun = {**SFT, "model": {"init_from": "runs/teacher@120"}}
    text = render_card(facts(begun, record={"model": "org/base"}), "me/sums", "main")
    assert metadata(text)["base_model"] == "org/base"
    unknown = render_card(facts(begun), "me/sums", "main")
    assert "base_model" not in metadata(unknown) and "`runs/teacher@120`" in unknown

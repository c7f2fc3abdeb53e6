"""Presets: what they set, what stands against them, and that a resolved run stays as it is."""

from typing import Any, cast

import pytest

from runfile import RunFile, parse_run_file, presets
from runfile.mistakes import RunFileErrors


def run(**keys: Any) -> RunFile:
    spec = {"version": "relay/v1", "method": "sft", "model": {"name_or_path": "x/y"}, "data": {"train": "a.jsonl"}}
    return parse_run_file({**spec, **keys})


@pytest.mark.parametrize("name", presets.PRESETS)
@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_a_preset_resolves_once(name: str, method: str) -> None:
    """On submitter, coordinator, agent and trainer the run file is the same one."""
    once = run(preset=name, method=method)
    assert parse_run_file(once.to_dict()) == once and once.preset == (name,)


def test_an_adapter_learns_at_ten_times_the_methods_rate() -> None:
    assert run(preset="lora").options == {"learning_rate": 2e-4}
    assert run(preset="lora", method="dpo").options == {"learning_rate": 1e-5}


def test_four_bits_go_with_an_adapter() -> None:
    made = run(preset="qlora")
    assert made.lora == run(preset="lora").lora
    assert made.quantization is not None and made.quantization["bnb_4bit_quant_type"] == "nf4"
    assert made.model_init == {"dtype": "bfloat16"}


def test_what_the_file_says_stands() -> None:
    given = {"gradient_checkpointing": False, "learning_rate": 1e-3}
    made = run(preset=["lora", "small-memory"], lora={"r": 4}, options=given)
    assert made.lora is not None and (made.lora["r"], made.lora["lora_alpha"]) == (4, 32)
    assert made.options == {
        **given,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "optim": "adafactor",
    }
    said = list(presets.describe_presets(made.to_dict()))
    assert "lora.r=16 (the run file says otherwise)" in said[0] and "lora.lora_alpha=32," in said[0]
    assert said[1].startswith("preset small-memory: options.gradient_checkpointing=true (the run file says otherwise)")


def test_options_that_a_method_has_not_are_passed_over() -> None:
    assert "packing" not in run(preset="long-context", method="dpo").options


def test_of_two_presets_the_first_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"options": {"per_device_train_batch_size": 8}}
    monkeypatch.setitem(cast(dict[str, Any], presets.PRESETS), "wide", wide)
    assert run(preset=["wide", "small-memory"]).options["per_device_train_batch_size"] == 8
    assert run(preset=["small-memory", "wide"]).options["per_device_train_batch_size"] == 1


def test_rl_is_a_mode_and_grpo_its_method() -> None:
    assert run(method="rl", rewards=[{"name": "exact_match"}]).method == "grpo"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"preset": "qlorra"}, 'there is no preset "qlorra"; did you mean qlora?'),
        ({"preset": ["full", "lora"]}, "full trains all weights, and lora an adapter"),
        ({"preset": "full", "lora": {"r": 4}}, "full trains all weights, and lora an adapter"),
        ({"quantization": {"load_in_4bit": True}}, "quantization: needs lora"),
        ({"preset": "lora", "quantization": {"load_in_4bits": True}}, "did you mean load_in_4bit?"),
        ({"launch": {"fsdp": {}}}, "launch.fsdp: unknown option; there is fsdp_config, "),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RunFileErrors) as refused:
        run(**keys)
    assert said in str(refused.value)

"""What a host lacks is reported before anything is loaded."""

from typing import Any

import pytest

from runfile import parse_run_file
from tests.trainers.deferred import deferred_imports
from trainers.errors import HostError

with deferred_imports():
    from trainers import requirements


SPEC = {"version": "relay/v1", "method": "sft", "model": {"name_or_path": "x/y"}, "data": {"train": "a.jsonl"}}


def lacks(**keys: Any) -> str:
    with pytest.raises(HostError) as lack:
        requirements.require_host(parse_run_file({**SPEC, **keys}), 1)
    return str(lack.value)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPUs of this machine."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_a_plain_run_lacks_nothing() -> None:
    requirements.require_host(parse_run_file({**SPEC, "preset": ["lora", "small-memory"]}), 1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"resources": {"gpus_per_node": 1}}, "this host must have 1 CUDA GPUs, and torch finds 0"),
        ({"preset": "qlora"}, "quantization needs a CUDA GPU, and torch finds none"),
        ({"preset": "long-context"}, "model_init.attn_implementation: flash attention needs a CUDA GPU"),
        ({"model_init": {"attn_implementation": "owner/kernel"}}, "a kernel of the Hub needs a CUDA GPU"),
        ({"options": {"activation_offloading": True}}, "options.activation_offloading needs a CUDA GPU"),
        ({"launch": {"fsdp_config": {"fsdp_version": 2}}}, "launch.fsdp_config needs a CUDA GPU"),
        ({"launch": {"deepspeed_config": {"zero_stage": 2}}}, "launch.deepspeed_config needs a CUDA GPU"),
    ],
)
def test_what_needs_a_gpu(keys: dict[str, Any], said: str) -> None:
    assert said in lacks(**keys)


def test_what_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is missing is reported at once."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr("trainers.requirements.find_spec", lambda name: None)
    assert lacks(preset="qlora", options={"bf16": True}) == (
        "quantization needs the package bitsandbytes (pip install 'relay-training[quantization]'); "
        "options.bf16: Tesla T4 has no bfloat16 (use fp16: true)"
    )


@pytest.mark.parametrize(
    ("options", "pins", "capable", "precision"),
    [
        ({}, {}, True, "bfloat16"),
        ({}, {}, False, "float32"),
        ({}, {"precision": "float32"}, True, "float32"),
        ({}, {"precision": "bfloat16"}, False, "bfloat16"),
        ({"bf16": False}, {}, True, None),
        ({"fp16": True}, {"precision": "bfloat16"}, True, None),
    ],
)
def test_the_first_host_decides_the_precision(
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    pins: dict[str, str],
    capable: bool,
    precision: str | None,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: capable)
    assert requirements.resolve_precision(parse_run_file({**SPEC, "options": options}), pins) == precision


def test_a_gpu_without_bfloat16_is_no_place_for_a_run_that_began_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    requirements.require_host(parse_run_file(SPEC), 1)
    with pytest.raises(HostError, match="this run began in bfloat16, which Tesla T4 has not"):
        requirements.require_host(parse_run_file(SPEC), 1, {"precision": "bfloat16"})

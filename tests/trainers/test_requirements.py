"""What a host lacks is reported before anything is loaded."""

from typing import Any

import pytest

from runfile import parse_run_file
from tests.trainers.deferred import deferred_imports
from trainers.errors import HostError

with deferred_imports():
    from trainers import requirements


def lacks(**keys: Any) -> str:
    spec = {"version": "relay/v1", "method": "sft", "model": {"name_or_path": "x/y"}, "data": {"train": "a.jsonl"}}
    with pytest.raises(HostError) as lack:
        requirements.require_host(parse_run_file({**spec, **keys}), 1)
    return str(lack.value)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPUs of this machine."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_a_plain_run_lacks_nothing() -> None:
    spec = {"version": "relay/v1", "method": "sft", "model": {"name_or_path": "x/y"}, "data": {"train": "a.jsonl"}}
    requirements.require_host(parse_run_file({**spec, "preset": ["lora", "fast", "small-memory"]}), 1)


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
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr("trainers.requirements.find_spec", lambda name: None)
    assert lacks(preset="qlora", options={"bf16": True}) == (
        "quantization needs the package bitsandbytes; options.bf16: Tesla T4 has no bfloat16 (use fp16: true)"
    )

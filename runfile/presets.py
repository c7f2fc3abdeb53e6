"""Presets: named sets of values for keys that a run file leaves out.

A resolved run has their values as if they had been written, and the presets' names; resolving it again changes nothing.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from runfile import options
from runfile.mistakes import Mistake, find_nearest, join_alternatives

_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
#: Quantization to 4 bits as in the QLoRA paper (arXiv:2305.14314): NormalFloat4, with its constants quantized too.
_NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
#: The values of each preset, by section. Options that a method does not have are skipped.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "lora": {"lora": _LORA},
    "qlora": {"lora": _LORA, "quantization": _NF4, "model_init": {"dtype": "bfloat16"}},
    "full": {},
    "long-context": {
        "options": {
            "max_length": 8192,
            "packing": True,
            "gradient_checkpointing": True,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 16,
        },
        "model_init": {"attn_implementation": "flash_attention_2"},
    },
    "small-memory": {
        "options": {
            "gradient_checkpointing": True,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 16,
            "optim": "adafactor",
        }
    },
}
#: Factor on the method's default learning rate: adapters learn best with about ten times the rate of full training,
#: whatever the model's size (Schulman et al., "LoRA Without Regret", 2025).
_FASTER = 10.0
_ADAPTING = ("lora", "qlora")


def find_preset_mistakes(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a mistake for each unknown preset and for presets that exclude each other."""
    names = _preset_names(data)
    for index, name in enumerate(names):
        if name not in PRESETS:
            close = find_nearest(name, PRESETS)
            hint = f"did you mean {close}?" if close else f"there is {join_alternatives(list(PRESETS))}"
            yield Mistake(("preset", index), f'there is no preset "{name}"', hint)
    adapting = [name for name in names if name in _ADAPTING]
    if "full" in names and (adapting or data.get("lora") is not None):
        other = adapting[0] if adapting else "lora"
        yield Mistake(("preset",), f"full trains all weights, and {other} an adapter", "leave one of them out")
    if data.get("quantization") and data.get("lora") is None and not adapting:
        yield Mistake(
            ("quantization",), "needs lora", "weights of 4 or 8 bits cannot be trained; an adapter on them can"
        )


def apply_presets(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run file with its presets' values for missing keys; of two presets the first one wins."""
    resolved = dict(data)
    for name in _preset_names(data):
        for section, values in _values_of(name, str(data.get("method"))).items():
            if isinstance(given := resolved.get(section, {}), Mapping):
                resolved[section] = {**values, **given}
    return resolved


def describe_presets(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each preset of a resolved run: what it sets, and where the run file has its own value."""
    for name in _preset_names(run):
        texts = [
            f"{section}.{key}={_format_value(value)}"
            + ("" if _has_value(run, section, key, value) else " (the run file says otherwise)")
            for section, values in _values_of(name, str(run.get("method"))).items()
            for key, value in values.items()
        ]
        yield f"preset {name}: {', '.join(texts) or 'all weights are trained'}"


def _preset_names(data: Mapping[str, Any]) -> list[str]:
    named = data.get("preset")
    listed = named if isinstance(named, list | tuple) else [named]
    return [name for name in listed if isinstance(name, str)]


@cache
def _values_of(name: str, method: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the values of a preset for a method, with only the options that the method has."""
    known = options.list_options(method)
    sets = {section: dict(values) for section, values in PRESETS.get(name, {}).items()}
    if name in _ADAPTING and (usual := known.get("learning_rate", {}).get("default")):
        sets["options"] = {"learning_rate": float(f"{_FASTER * usual:.6g}")}
    sets["options"] = {key: value for key, value in sets.get("options", {}).items() if key in known}
    return {section: values for section, values in sets.items() if values}


def _has_value(run: Mapping[str, Any], section: str, key: str, value: Any) -> bool:
    return bool((run.get(section) or {}).get(key) == value)


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)

"""What a method trains: a model that the library loads by itself, or a base with another run's adapter on it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from relay.loadable import ADAPTER
from relay.runfile import RunFile
from trainers.errors import ConfigError
from trainers.hub import LocalModel


@dataclass(frozen=True, slots=True)
class Beginning:
    """To be given to a library trainer."""

    model: Any  #: a folder, or a model that is loaded
    model_init: dict[str, Any] | None  #: how the library is to load it; None when it is loaded
    lora: LoraConfig | None  #: a new adapter
    tokenizer: Any = None  #: None: the model's own


def begin(run: RunFile, model: LocalModel) -> Beginning:
    """Another run's adapter is trained on as it is when the run asks for LoRA, and merged into its base when all
    weights are trained. Raises ConfigError when the run asks for another adapter than that.
    """
    if model.adapter is None:
        lora = LoraConfig(task_type="CAUSAL_LM", **run.lora) if run.lora is not None else None
        return Beginning(str(model.folder), dict(run.model_init), lora)
    tokenizer = AutoTokenizer.from_pretrained(model.adapter)
    if run.lora is None:
        return Beginning(_merged(run, model.folder, model.adapter), None, None, tokenizer)
    require_same(run.lora, model.adapter)
    base = AutoModelForCausalLM.from_pretrained(model.folder, **{"dtype": "float32"} | run.model_init)
    return Beginning(PeftModel.from_pretrained(base, str(model.adapter), is_trainable=True), None, None, tokenizer)


def _merged(run: RunFile, base: Path, adapter: Path) -> Any:
    """Summed in float32, whatever the type that is trained in."""
    how = {name: value for name, value in run.model_init.items() if name != "dtype"}
    whole: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **how), str(adapter)
    )
    merged = whole.merge_and_unload().to(_dtype(run.model_init.get("dtype", "float32"), base))
    return merged.requires_grad_(True)  # an adapter freezes what is under it


def _dtype(asked: str, base: Path) -> torch.dtype:
    """The type that the library would load it in."""
    kind = AutoConfig.from_pretrained(base).dtype if asked == "auto" else getattr(torch, asked, None)
    if not isinstance(kind, torch.dtype):
        raise ConfigError(f"model_init.dtype: {asked} is no type; for instance bfloat16")
    return kind


def require_same(asked: Mapping[str, Any], adapter: Path) -> None:
    """ConfigError names what a run asks of its adapter and the one it begins with does not have."""
    if differences := list(_differences(asked, json.loads((adapter / ADAPTER).read_text()))):
        raise ConfigError(
            f"lora: the adapter that model.init_from names has {', '.join(differences)}; "
            "write the same, or leave lora out to merge it and train all weights"
        )


def _differences(asked: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    for name, value in asked.items():
        if name == "target_modules" and isinstance(value, str):  # a pattern; there it stands resolved
            continue
        found = there.get(name)
        if (sorted(value) != sorted(found or ())) if isinstance(value, list | tuple) else value != found:
            yield f"{name}: {json.dumps(found)}, not {json.dumps(value)}"

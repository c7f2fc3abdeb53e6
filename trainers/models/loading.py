"""Loading the initial model of a run: one that the library loads by itself, or a base model with another
run's adapter.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    set_seed,
)

from runfile import RunFile
from runfile.mistakes import find_nearest
from storage.loadable import ADAPTER
from trainers.errors import ConfigError
from trainers.models.hub import LocalModel

LANGUAGE_TASK, SCORING_TASK = "CAUSAL_LM", "SEQ_CLS"  #: what a model learns to give, by PEFT's names
_HEADS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    LANGUAGE_TASK: (AutoModelForCausalLM, {}),
    SCORING_TASK: (AutoModelForSequenceClassification, {"num_labels": 1}),
}

_OF_ADAPTER = re.compile(
    r"\.(base_layer|lora_\w+|modules_to_save|original_module)(\.|$)"
)  #: what PEFT puts into modules


@dataclass(frozen=True, slots=True)
class InitialModel:
    """The initial model, as a library trainer takes it."""

    model: Any  #: a folder, or a loaded model
    model_init: dict[str, Any] | None  #: arguments for loading the folder; None for a loaded model
    lora: LoraConfig | None  #: a new adapter
    tokenizer: Any = None  #: None for the model's own


def load_initial_model(run: RunFile, model: LocalModel, task: str = LANGUAGE_TASK, *, bf16: bool) -> InitialModel:
    """Load the model that training begins with. A run with LoRA continues to train another run's adapter; a run that
    trains all weights merges it into its base. `bf16`: it computes in bfloat16. Raises ConfigError when the run asks
    for a different adapter.
    """
    if model.adapter is None:
        lora = (
            LoraConfig(task_type=task, **copy.deepcopy(run.lora)) if run.lora is not None else None
        )  # PEFT adds to it
        return InitialModel(str(model.folder), _loading_arguments(run, bf16), lora)
    require_adapter_task(task, model.adapter)
    tokenizer = AutoTokenizer.from_pretrained(model.adapter)
    set_seed(run.seed)  # a head that the base lacks is drawn at random, then replaced by the adapter's
    if run.lora is None:
        return InitialModel(_load_merged(run, model.folder, model.adapter, task), None, None, tokenizer)
    require_same_adapter(run.lora, model.adapter)
    base = load_model(model.folder, task, **{"dtype": "float32"} | _loading_arguments(run, bf16))
    return InitialModel(PeftModel.from_pretrained(base, str(model.adapter), is_trainable=True), None, None, tokenizer)


def _loading_arguments(run: RunFile, bf16: bool) -> dict[str, Any]:
    """Return the arguments with which a model is loaded. Weights that are only read, under an adapter, are held in the
    type that is computed in; those that are trained stay in float32.
    """
    frozen = {"dtype": "bfloat16"} if bf16 and run.lora is not None else {}
    quantized = {"quantization_config": BitsAndBytesConfig(**run.quantization)} if run.quantization else {}
    return {**frozen, **run.model_init, **quantized}


def hold_trained_in_float32(model: torch.nn.Module) -> None:
    """Cast what is trained to float32, as PEFT does with adapters but not with whole modules (a new head, embeddings):
    in bfloat16 a small update of a weight is rounded away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def load_model(folder: Path, task: str, **how: Any) -> Any:
    """Load the model in `folder` with the head that the task needs."""
    kind, more = _HEADS[task]
    return kind.from_pretrained(folder, **more, **how)


def copy_reference_model(begun: InitialModel) -> Any:
    """Return the reference model of a method that compares with the initial weights, or None where the library finds
    it.

    The library loads a folder again, switches a new adapter off, and keeps a copy of an adapter that is trained further
    (`ref`, in `DPOTrainer.__init__` and `KTOTrainer.__init__`; it is never saved, see `trainers.resumable`). For a
    merged model it would load the base model, which is wrong.
    """
    return copy.deepcopy(begun.model) if isinstance(begun.model, PreTrainedModel) else None


def _load_merged(run: RunFile, base: Path, adapter: Path, task: str) -> Any:
    """Load the base model with the adapter merged into it. The sum is computed in float32, whatever type is trained."""
    how = {name: value for name, value in run.model_init.items() if name != "dtype"}
    whole: Any = PeftModel.from_pretrained(load_model(base, task, dtype=torch.float32, **how), str(adapter))
    merged = whole.merge_and_unload().to(_resolve_dtype(run.model_init.get("dtype", "float32"), base))
    return merged.requires_grad_(True)  # PEFT has frozen the base model


def _resolve_dtype(asked: str, base: Path) -> torch.dtype:
    """Return the type in which the library would load the model."""
    kind = AutoConfig.from_pretrained(base).dtype if asked == "auto" else getattr(torch, asked, None)
    if not isinstance(kind, torch.dtype):
        raise ConfigError(f"model_init.dtype: {asked} is not a type; for instance bfloat16")
    return kind


def require_adapter_task(task: str, adapter: Path) -> None:
    """Raise ConfigError when the adapter belongs to a model with another head: a language model has none
    that scores.
    """
    trained = json.loads((adapter / ADAPTER).read_text()).get("task_type") or task
    if trained != task:
        raise ConfigError(
            f"model.init_from: its adapter was trained for {trained}, and this method trains {task}; "
            "have it published merged (hub.push: merged) and name that model in model.name_or_path"
        )


def require_same_adapter(asked: Mapping[str, Any], adapter: Path) -> None:
    """Raise ConfigError when the run asks for another adapter than the one it begins with. The message names what
    differs.
    """
    if differences := list(_list_differences(asked, json.loads((adapter / ADAPTER).read_text()))):
        raise ConfigError(
            f"lora: the adapter that model.init_from names has {', '.join(differences)}; "
            "lora must ask for the same, or be left out to merge the adapter and train all weights"
        )


def _list_differences(asked: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the adapter in the folder has and the run asks otherwise."""
    for name, value in asked.items():
        if name == "target_modules" and isinstance(value, str):  # a pattern, which the saved config holds resolved
            continue
        found = there.get(name)
        if (sorted(value) != sorted(found or ())) if isinstance(value, list | tuple) else value != found:
            yield f"{name}: {json.dumps(found)}, not {json.dumps(value)}"


def require_matches(asked: Mapping[str, Any], model: PeftModel) -> None:
    """Raise ConfigError when an entry of the run's `lora` matches nothing in the model that the new adapter was made
    for. PEFT says so only where no entry of target_modules matches.
    """
    tuner: Any = model.base_model
    parameters = {name.removeprefix("model.") for name, _ in tuner.named_parameters()}
    modules = {name.removeprefix("model.") for name, _ in tuner.named_modules() if not _OF_ADAPTER.search(name)}
    targeted = set(tuner.targeted_module_names)
    for key, names, pattern in (
        ("target_modules", modules, r"(.*\.)?{}"),
        ("exclude_modules", modules, r"(.*\.)?{}"),
        ("modules_to_save", modules, r"(.*\.)?{}(\..*)?"),
        ("target_parameters", parameters, r"(.*\.)?{}"),
        ("rank_pattern", targeted, r"(.*\.)?({})"),
        ("alpha_pattern", targeted, r"(.*\.)?({})"),
        ("layers_to_transform", targeted, r".*\.{}\..*"),
    ):
        given = asked.get(key)
        literal = "pattern" not in key
        for entry in given if isinstance(given, list | tuple | dict) else [given] if isinstance(given, int) else ():
            text = re.escape(str(entry)) if literal else str(entry)
            if not any(re.fullmatch(pattern.format(text), name) for name in names):
                close = find_nearest(str(entry), {name.rpartition(".")[2] for name in names})
                hint = f"; did you mean {close}?" if close else ""
                raise ConfigError(f"lora.{key}: {entry} matches nothing in the model{hint}")

"""The options of every method as JSON Schema, generated from the libraries' own config classes: `python -m
trainers.schemas`.

The files lie beside the contract (`proto/relay/v1/methods/`), so a misspelt option is refused where no training library
is installed. Options that Relay sets itself are left out, and `x-relay-owned` says what to write instead.
"""

import argparse
import dataclasses
import enum
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).resolve().parent.parent / "proto" / "relay" / "v1" / "methods"
LIBRARIES = ("accelerate", "peft", "torch", "transformers", "trl")

_CHECKPOINT = "use checkpoint.every and checkpoint.keep"
_HUB = "use hub"
_LAUNCH = "use launch"
_BEST = "use checkpoint.keep (best, metric, mode)"
_TRACKERS = "use trackers"
_ITSELF = "Relay decides this itself"
_REFERENCE = "the reference is what the run began with, so that it is the same after a resume"

#: Options of `TrainingArguments` that belong to Relay, and what to write instead.
OWNED: Mapping[str, str] = {
    "output_dir": "Relay keeps the run's folders; the result is stored when the run ends",
    "resume_from_checkpoint": "Relay resumes by itself; to start from another run's weights use model.init_from",
    "restore_callback_states_from_checkpoint": _ITSELF,
    "ignore_data_skip": "Relay resumes exactly where a run stopped",
    "report_to": _TRACKERS,
    "project": _TRACKERS,
    "trackio_space_id": _TRACKERS,
    "trackio_bucket_id": _TRACKERS,
    "trackio_static_space_id": _TRACKERS,
    "run_name": "use name",
    "disable_tqdm": "progress is reported as events",
    "push_to_hub": _HUB,
    "hub_token": "use secrets: [HF_TOKEN]",
    "hub_private_repo": "use hub.private",
    "hub_model_id": "use hub.repo",
    "hub_strategy": "use hub.push and hub.every",
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "save_strategy": _CHECKPOINT,
    "save_steps": "use checkpoint.every, for instance 500 steps",
    "save_total_limit": "use checkpoint.keep.last",
    "save_only_model": "a checkpoint is always whole, so that any host can go on from it",
    "save_on_each_node": _CHECKPOINT,
    "enable_jit_checkpoint": "Relay saves before it stops",
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": "use checkpoint.keep.metric",
    "greater_is_better": "use checkpoint.keep.mode",
    "logging_nan_inf_filter": "a loss that is NaN is shown",
    "seed": "use seed",
    "data_seed": "use seed",
    "use_cpu": "use resources.gpus_per_node and resources.require_cuda",
    "model_init_kwargs": "use model_init",
    "teacher_model_name_or_path": "use teacher.name_or_path",
    "teacher_model_revision": "use teacher.revision",
    "teacher_model_init_kwargs": "use teacher; it is loaded as model_init says",
    "reward_weights": "use rewards, each with its weight",
    "log_completions_hub_repo": _HUB,
    "dataset_text_field": "use data.columns, for instance {body: text}",
    "sync_ref_model": _REFERENCE,
    "ref_model_mixup_alpha": _REFERENCE,
    "ref_model_sync_steps": _REFERENCE,
    "generate_during_eval": "completions are not shown yet",
    "auto_find_batch_size": "use lifecycle.on_oom",
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "deepspeed": _LAUNCH,
    "local_rank": _LAUNCH,
    "do_train": _ITSELF,
    "do_eval": "use data.eval",
    "do_predict": _ITSELF,
}

#: Choices that the libraries check only when they train.
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "packing_strategy": ("bfd", "bfd_split", "wrapped"),
    "truncation_mode": ("keep_start", "keep_end"),
}
#: What makes sense, as JSON Schema's bounds; the libraries find the rest out when they train, or never.
_AT_LEAST_0, _AT_LEAST_1, _ABOVE_0 = {"minimum": 0}, {"minimum": 1}, {"exclusiveMinimum": 0}
_SHARE, _BELOW_1 = {"minimum": 0, "maximum": 1}, {"minimum": 0, "exclusiveMaximum": 1}
_BOUNDS: Mapping[str, Mapping[str, int]] = {
    "per_device_train_batch_size": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "dataloader_num_workers": _AT_LEAST_0,
    "max_steps": {"minimum": -1},
    "num_train_epochs": _ABOVE_0,
    "learning_rate": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "adam_beta1": _BELOW_1,
    "adam_beta2": _BELOW_1,
    "adam_epsilon": _AT_LEAST_0,
    "max_grad_norm": _AT_LEAST_0,
    "warmup_steps": _AT_LEAST_0,
    "label_smoothing_factor": _SHARE,
    "label_smoothing": _SHARE,
    "max_length": _AT_LEAST_1,
    "max_prompt_length": _AT_LEAST_1,
    "max_completion_length": _AT_LEAST_1,
    "max_new_tokens": _AT_LEAST_1,
    "num_generations": _AT_LEAST_1,
    "num_iterations": _AT_LEAST_1,
    "temperature": _ABOVE_0,
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "beta": _AT_LEAST_0,
    "epsilon": _AT_LEAST_0,
    "lmbda": _SHARE,
    "r": _AT_LEAST_1,
    "lora_alpha": _AT_LEAST_0,
    "lora_dropout": _BELOW_1,
}
_LOSSES: Mapping[str, tuple[str, ...]] = {
    "sft": ("nll", "dft"),
    "cpt": ("nll", "dft"),
    "dpo": (
        *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
        *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft"),
    ),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo", "alphapo"),
    "kto": ("kto", "apo_zero_unpaired"),
}
_LORA_SET_BY_METHOD = (
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
_JSON_TYPES: Mapping[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def build_method_schema(method: str) -> dict[str, Any]:
    """Return the JSON Schema of one method's `options`. Raises ConfigError when there is no such method."""
    from peft import LoraConfig

    config = _config_class(method)
    hidden = {*OWNED, "model_init_kwargs"}
    fields = [field for field in dataclasses.fields(config) if field.init and field.name not in hidden]
    choices = {**_CHOICES, **({"loss_type": _LOSSES[method]} if method in _LOSSES else {})}
    owned = {field.name for field in dataclasses.fields(config)} & set(OWNED)
    lora = [field for field in dataclasses.fields(LoraConfig) if field.init and field.name not in _LORA_SET_BY_METHOD]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Options of the method {method} ({config.__module__.partition('.')[0]}.{config.__name__})",
        "description": "Generated by `make schemas`; not edited by hand.",
        "x-relay-versions": {library: version(library).partition("+")[0] for library in LIBRARIES},
        "x-relay-owned": {name: OWNED[name] for name in sorted(owned)},
        "type": "object",
        "additionalProperties": False,
        "properties": _property_schemas(config, fields, choices),
        "x-relay-sections": {
            "lora": {
                "type": "object",
                "additionalProperties": False,
                "properties": _property_schemas(LoraConfig, lora, {}),
            },
            "model_init": _model_init_schema(),
            "quantization": _quantization_schema(),
            "launch": _launch_schema(),
        },
    }


def _config_class(method: str) -> type:
    from trainers import evaluation, methods

    return evaluation.EvaluateConfig if method == evaluation.METHOD else methods.load_method(method).config_class


def _property_schemas(
    config: type, fields: Iterable["dataclasses.Field[Any]"], choices: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Return the schema of each option, with its default and its description."""
    hints = typing.get_type_hints(config)
    documented = _read_descriptions(config)
    properties = {}
    for field in fields:
        schema = _type_schema(hints[field.name])
        if field.name in choices:
            schema = _enum_schema(choices[field.name], several=schema.get("type") == "array")
        schema |= _BOUNDS.get(field.name, {})
        default = _default_value(field)
        if default is not dataclasses.MISSING:
            schema["default"] = default
        if text := documented.get(field.name) or _first_sentence(str(field.metadata.get("help", ""))):
            schema["description"] = text
        properties[field.name] = schema
    return properties


def _enum_schema(choices: tuple[str, ...], *, several: bool) -> dict[str, Any]:
    one = {"enum": list(choices)}
    return {"anyOf": [one, {"type": "array", "items": one}]} if several else one


def _type_schema(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return _union_schema(arguments)
    if hint is list or origin in (list, tuple, set):
        return {"type": "array", **({"items": _type_schema(arguments[0])} if arguments else {})}
    if hint is dict or origin is dict:
        return {"type": "object"}
    return {"type": "object"}  # a config class of the library's own: it reads a mapping


def _union_schema(members: tuple[Any, ...]) -> dict[str, Any]:
    """Return the schema of a union. The libraries write `SomeEnum | str` for a choice, of which only the
    enum counts.
    """
    if any(isinstance(member, type) and issubclass(member, enum.Enum) for member in members):
        members = tuple(member for member in members if member is not str)
    variants: list[dict[str, Any]] = []
    for schema in map(_type_schema, members):
        if schema not in variants:
            variants.append(schema)
    if len(variants) == 1:
        return variants[0]
    if all(set(variant) == {"type"} for variant in variants):
        return {"type": [variant["type"] for variant in variants]}
    return {"anyOf": variants}


def _default_value(field: "dataclasses.Field[Any]") -> Any:
    """Return an option's default where JSON can hold it, else `dataclasses.MISSING`."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, bool | int | float | str | list | dict | None) else dataclasses.MISSING


_DOCUMENTED_PARAMETER = re.compile(r"^ {8}(\w+) \(.*\):\s*$")


def _read_descriptions(config: type) -> dict[str, str]:
    """Return the first sentence that the docstrings of a config class and its parents have on each parameter."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        name = ""
        lines: list[str] = []
        for line in [*(cls.__doc__ or "").splitlines(), " " * 8 + "end (`x`):"]:
            if entry := _DOCUMENTED_PARAMETER.match(line):
                if name and lines:
                    texts[name] = _first_sentence(" ".join(lines))
                name, lines = entry[1], []
            elif name and line.startswith(" " * 12):
                lines.append(line.strip())
            elif line.strip():
                name, lines = "", []
    return texts


def _first_sentence(text: str, limit: int = 240) -> str:
    """Return the first sentence of a description, without markup and cut at `limit` characters."""
    plain = re.sub(r"\[?`~?(?:[\w.]+\.)?([^`]*)`\]?", r"\1", " ".join(text.replace("%%", "%").split()))
    first = re.split(r"(?<=[.!])\s+(?=[A-Z])", plain, maxsplit=1)[0]
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _model_init_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Passed to the model's from_pretrained.",
        "properties": {
            "dtype": {"enum": ["float32", "bfloat16", "float16", "auto"], "default": "float32"},
            "attn_implementation": {"type": "string", "description": "For instance sdpa, eager or flash_attention_2."},
            "use_kernels": {"type": "boolean"},
            "device_map": {"type": ["string", "object", "null"]},
            "revision": False,
        },
    }


def _quantization_schema() -> dict[str, Any]:
    """Return the schema of bitsandbytes' configuration, from the arguments that transformers accepts."""
    from transformers import BitsAndBytesConfig

    parameters = inspect.signature(BitsAndBytesConfig.__init__).parameters.values()
    named = [each for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD and each.name != "self"]
    choices = {
        "bnb_4bit_quant_type": ("fp4", "nf4"),
        "bnb_4bit_compute_dtype": ("float32", "bfloat16", "float16"),
        "bnb_4bit_quant_storage": ("uint8", "float16", "float32", "int8", "float64", "bfloat16"),
    }
    properties = {
        each.name: {"enum": list(choices[each.name])}
        if each.name in choices
        else _type_schema(type(each.default))
        if each.default is not None
        else {"type": "array", "items": {"type": "string"}}
        for each in named
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _launch_schema() -> dict[str, Any]:
    """Return the sections of accelerate's own configuration file, whose content is passed through."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "fsdp_config": {"type": "object", "description": "FSDP2, as in accelerate's configuration file."},
            "deepspeed_config": {"type": "object", "description": "DeepSpeed, as in accelerate's configuration file."},
            "parallelism_config": {"type": "object", "description": "Context and tensor parallelism."},
            "dynamo_config": {"type": "object", "description": "torch.compile."},
            "enable_cpu_affinity": {"type": "boolean"},
        },
    }


def render_schema(method: str) -> str:
    """Return the text of the committed file."""
    return json.dumps(build_method_schema(method), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write the schema of every method, or with --check name those that are stale. Return the exit code."""
    from trainers import evaluation, methods

    parser = argparse.ArgumentParser(prog="python -m trainers.schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a schema is stale")
    check = parser.parse_args(argv).check
    stale = [method for method in (*methods.NAMES, evaluation.METHOD) if not _is_fresh(method, write=not check)]
    if check and stale:
        print(f"stale: {', '.join(stale)}; run `make schemas`", file=sys.stderr)
    return int(check and bool(stale))


def _is_fresh(method: str, *, write: bool) -> bool:
    """Return True when the committed schema is up to date; write it when asked."""
    path, text = FOLDER / f"{method}.json", render_schema(method)
    fresh = path.is_file() and path.read_text() == text
    if write and not fresh:
        path.write_text(text)
    return fresh


if __name__ == "__main__":
    sys.exit(main())

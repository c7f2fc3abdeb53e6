"""Suggestions for unknown keys: near misses, keys of other sections, and the names that other tools use."""

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from runfile.mistakes import KeyPath, find_nearest, format_path, join_alternatives
from runfile.models import AdoptCheckpoints, AdoptSection, RunFile

#: The name in other tools → the key here. A text with a space is the whole answer.
ALIASES: Mapping[str, str] = {
    "accelerator": "resources.gpus_per_node",
    "accelerators": "resources.gpus_per_node",
    "gpu": "resources.gpus_per_node",
    "gpu_count": "resources.gpus_per_node",
    "gpus": "resources.gpus_per_node",
    "gpus_per_worker": "resources.gpus_per_node",
    "num_gpus": "resources.gpus_per_node",
    "nproc_per_node": "resources.gpus_per_node",
    "n_gpus_per_node": "resources.gpus_per_node",
    "gpu_memory": "resources.vram_gib",
    "vram": "resources.vram_gib",
    "memory": "resources.ram_gib",
    "ram": "resources.ram_gib",
    "disk": "resources.disk_gib",
    "disk_size": "resources.disk_gib",
    "cpu": "resources.cpus",
    "num_cpus": "resources.cpus",
    "nnodes": "resources.nodes",
    "num_nodes": "resources.nodes",
    "num_workers": "resources.nodes",
    "node_selector": "resources.labels",
    "max_duration": "lifecycle.max_runtime",
    "max_run_duration": "lifecycle.max_runtime",
    "time_limit": "lifecycle.max_runtime",
    "timeout": "lifecycle.max_runtime",
    "max_restarts": "lifecycle.max_attempts",
    "max_retries": "lifecycle.max_attempts",
    "retries": "lifecycle.max_attempts",
    "retry": "lifecycle.max_attempts",
    "base_model": "model.name_or_path",
    "model_id": "model.name_or_path",
    "model_name": "model.name_or_path",
    "model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "pretrained_model_name_or_path": "model.name_or_path",
    "model_init_kwargs": "model_init",
    "model_kwargs": "model_init",
    "dtype": "model_init.dtype",
    "torch_dtype": "model_init.dtype",
    "attn_implementation": "model_init.attn_implementation",
    "load_in_4bit": "quantization.load_in_4bit",
    "load_in_8bit": "quantization.load_in_8bit",
    "bnb_config": "quantization",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "datasets": "data.train",
    "dataset_path": "data.train",
    "train_dataset": "data.train",
    "train_file": "data.train",
    "train_data": "data.train",
    "training_data": "data.train",
    "test_datasets": "data.eval",
    "eval_dataset": "data.eval",
    "eval_file": "data.eval",
    "validation": "data.eval",
    "val_set_size": "data.eval",
    "args": "options",
    "config": "options",
    "hyperparameters": "options",
    "params": "options",
    "train_args": "options",
    "trainer_args": "options",
    "training": "options",
    "training_args": "options",
    "training_arguments": "options",
    "batch_size": "options.per_device_train_batch_size",
    "micro_batch_size": "options.per_device_train_batch_size",
    "train_batch_size": "options.per_device_train_batch_size",
    "eval_batch_size": "options.per_device_eval_batch_size",
    "gradient_accumulation": "options.gradient_accumulation_steps",
    "grad_accum": "options.gradient_accumulation_steps",
    "grad_accum_steps": "options.gradient_accumulation_steps",
    "epochs": "options.num_train_epochs",
    "n_epochs": "options.num_train_epochs",
    "num_epochs": "options.num_train_epochs",
    "lr": "options.learning_rate",
    "learning_rate_scheduler": "options.lr_scheduler_type",
    "lr_scheduler": "options.lr_scheduler_type",
    "cutoff_len": "options.max_length",
    "max_seq_len": "options.max_length",
    "max_seq_length": "options.max_length",
    "sequence_len": "options.max_length",
    "seq_length": "options.max_length",
    "sample_packing": "options.packing",
    "steps": "options.max_steps",
    "max_train_steps": "options.max_steps",
    "optimizer": "options.optim",
    "warmup": "options.warmup_steps",
    "log_every": "options.logging_steps",
    "peft": "lora",
    "peft_config": "lora",
    "lora_config": "lora",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_alpha": "lora.lora_alpha",
    "lora_dropout": "lora.lora_dropout",
    "lora_target_modules": "lora.target_modules",
    "bnb": "quantization",
    "reward_funcs": "rewards",
    "reward_functions": "rewards",
    "algorithm": "method",
    "rl": "method",
    "task": "method",
    "trainer": "method",
    "training_type": "method",
    "cmd": "command",
    "commands": "command",
    "entrypoint": "command",
    "run": "command",
    "script": "command",
    "container": "image",
    "docker_image": "image",
    "image_id": "image",
    "working_dir": "workdir",
    "code": "files",
    "file_mounts": "files",
    "include": "files",
    "mounts": "files",
    "upload": "files",
    "environment": "env",
    "envs": "env",
    "env_vars": "env",
    "tags": "labels",
    "annotations": "labels",
    "id": "name",
    "job_name": "name",
    "run_name": "name",
    "run_id": "name",
    "random_seed": "seed",
    "save_every": "checkpoint.every",
    "save_interval": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "checkpoints": "checkpoint",
    "checkpointing": "checkpoint",
    "save_total_limit": "checkpoint.keep.last",
    "keep_last": "checkpoint.keep.last",
    "keep_best": "checkpoint.keep.best",
    "hub_model_id": "hub.repo",
    "push_to_hub": "hub",
    "report_to": "trackers",
    "wandb": "trackers.wandb",
    "wandb_project": "trackers.wandb.project",
    "tensorboard": "trackers.tensorboard",
    "notifications": "alerts",
    "webhooks": "alerts",
    "deepspeed": "launch",
    "fsdp": "launch",
    "accelerate": "launch",
    "accelerate_config": "launch",
    "output_dir": "not needed: Relay chooses the folder and keeps the result",
    "resume_from_checkpoint": "not needed: a run always resumes from its newest good checkpoint",
    "resume": "not needed: a run always resumes from its newest good checkpoint",
}

#: The same for names that mean something else within one section.
SECTION_ALIASES: Mapping[tuple[str, str], str] = {
    ("data", "path"): "data.train",
    ("data", "files"): "data.train",
    ("data", "dataset"): "data.train",
    ("data", "test"): "data.eval",
    ("data", "val"): "data.eval",
    ("data", "split"): "data.eval",
    ("data", "type"): "data.format",
    ("data", "field_map"): "data.columns",
    ("data", "column_mapping"): "data.columns",
    ("data.train", "file"): "data.train[].path",
    ("data.train", "dataset"): "data.train[].path",
    ("data.train", "url"): "data.train[].path",
    ("data.train", "subset"): "data.train[].name",
    ("data.train", "num_rows"): "data.train[].size",
    ("model", "name"): "model.name_or_path",
    ("model", "path"): "model.name_or_path",
    ("model", "id"): "model.name_or_path",
    ("checkpoint", "interval"): "checkpoint.every",
    ("checkpoint", "steps"): "checkpoint.every",
    ("checkpoint", "path"): "checkpoint.store",
    ("checkpoint", "bucket"): "checkpoint.store",
    ("resources", "hosts"): "resources.allowed_hosts",
    ("hub", "name"): "hub.repo",
    ("hub", "repo_id"): "hub.repo",
    ("hub", "hub_model_id"): "hub.repo",
    ("rewards", "func"): "rewards[].call",
    ("rewards", "function"): "rewards[].call",
}


def suggest_key(path: KeyPath, options: Mapping[str, Any] | None = None) -> str:
    """Return a hint for the unknown key at `path`; `options` are the method's own option names."""
    section, key = tuple(part for part in path[:-1] if isinstance(part, str)), str(path[-1])
    known = list_keys(section)
    folded = key.casefold().replace("-", "_").replace(" ", "_")
    if elsewhere := SECTION_ALIASES.get((format_path(section), folded)):
        return _suggest_alias(section, elsewhere)
    if elsewhere := ALIASES.get(folded):
        return _suggest_alias(section, elsewhere)
    if close := find_nearest(key, known):
        return f"did you mean {close}?"
    if places := [f"{place}.{folded}" for place in _sections_by_key().get(folded, ()) if place != format_path(section)]:
        return (
            f"it belongs to {join_alternatives(places)}"
            if "" not in _sections_by_key()[folded]
            else f"{folded} stands at the top level"
        )
    if options and folded in options:
        return f"it belongs to options.{folded}"
    return f"known here: {', '.join(known)}" if known else ""


def _suggest_alias(section: KeyPath, elsewhere: str) -> str:
    if " " in elsewhere:
        return elsewhere
    parent, _, name = elsewhere.replace("[]", "").rpartition(".")
    return (
        f"it is called {name} here"
        if parent == format_path(section) and section
        else f"write {elsewhere.replace('[]', '')}"
    )


def list_keys(section: KeyPath) -> list[str]:
    """Return the keys of a section of a run file."""
    model: type[BaseModel] | None = RunFile
    for part in section:
        field = model.model_fields.get(str(part)) if model else None
        model = _section_of(field.annotation) if field else None
    return [_alias(name, field.alias) for name, field in model.model_fields.items()] if model else []


def _alias(name: str, alias: str | None) -> str:
    return alias or name


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section in a field's type, however it is wrapped; of several the one with most keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [section for argument in get_args(annotation) if (section := _section_of(argument))]
    return max(found, key=lambda section: len(section.model_fields), default=None)


@cache
def _sections_by_key() -> dict[str, tuple[str, ...]]:
    """Return the sections that have each key of the format ("" is the top level)."""
    places: dict[str, tuple[str, ...]] = {name: ("",) for name in RunFile.model_fields}
    for name, field in RunFile.model_fields.items():
        section = _section_of(field.annotation)
        if section not in (None, AdoptSection, AdoptCheckpoints):
            for key in list_keys((name,)):
                places[key] = (*places.get(key, ()), name)
    return places

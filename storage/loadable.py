"""The files of a checkpoint that a library loads: a model or an adapter with its tokenizer, without trainer state."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from storage.manifest import MANIFEST_FILE, list_files

ADAPTER = "adapter_config.json"
_MODEL = "config.json"
#: The files of one of which a library reads the weights, by the file that says what they are of. An index names others.
_WEIGHTS = {
    _MODEL: ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ADAPTER: ("adapter_model.safetensors", "adapter_model.bin"),
}
_TOKENIZERS = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
_SHARDS = "pytorch_model_fsdp*"  #: what FSDP alone can read
_HEADER_BYTES = 8  #: a safetensors file begins with the size of its header, as a little-endian number of this size
_MAX_HEADER = 100 * 1024 * 1024
#: What the frameworks put into the names of tensors that they have wrapped, and no library finds.
_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "_flat_param")
_LOADABLE = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", ADAPTER, "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
    *("chat_template*", "*.tiktoken", "*preprocessor_config.json", "processor_config.json", "modules.json"),
)
_WRITTEN_ANEW = ("README.md", "relay.json", MANIFEST_FILE)  #: wherever the files are published


def list_loadable_files(folder: Path) -> dict[str, Path]:
    """Return the files to load a folder from, by their paths in it. Blocking."""
    paths = (path.relative_to(folder).as_posix() for path in list_files(folder))
    return {path: folder / path for path in select_loadable(paths)}


def select_loadable(paths: Iterable[str]) -> list[str]:
    """Return those of a folder's paths that a library loads; all of them where no library does."""
    found = list(paths)
    if is_model(found):
        safe = any(path.endswith(".safetensors") for path in found)
        wanted = _LOADABLE if safe else (*_LOADABLE, *_PICKLED)
        found = [path for path in found if _matches(path, wanted) and not _matches(path, (_SHARDS,))]
    return [path for path in found if path not in _WRITTEN_ANEW]


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(path, each) for each in patterns)


def is_model(paths: Iterable[str]) -> bool:
    """Return whether the Hugging Face libraries load a folder with these files: a model or an adapter, with weights."""
    found = set(paths)
    return any(config in found and found.intersection(weights) for config, weights in _WEIGHTS.items())


def is_adapter(paths: Iterable[str]) -> bool:
    """Return whether the files are an adapter, which needs its base model."""
    return ADAPTER in paths


def library_of(paths: Iterable[str]) -> str:
    """Return the library that loads these files: `peft`, `transformers`, or empty when none does."""
    found = list(paths)
    return ("peft" if is_adapter(found) else "transformers") if is_model(found) else ""


def describe_missing_weights(paths: Iterable[str]) -> str:
    """Return, in words, what a folder with these files lacks to be a model or an adapter; empty where it is one."""
    found = set(paths)
    if is_model(found):
        return ""
    config = next((each for each in (ADAPTER, _MODEL) if each in found), None)
    return f"no weights beside {config}" if config else f"no {_MODEL}, no {ADAPTER}"


def find_missing_parts(folder: Path) -> list[str]:
    """Return, in words, what the folder lacks so that a library loads a model or an adapter and its tokenizer from it;
    nothing where it is whole. Weights must be safetensors. Reads their headers only. Blocking.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    config = next((each for each in (ADAPTER, _MODEL) if each in names), None)
    missing = [] if config else [f"{_MODEL} or {ADAPTER} is missing"]
    if not names.intersection(_TOKENIZERS):
        missing.append(f"{_TOKENIZERS[0]} is missing")
    weights = [each for each in _WEIGHTS[config or _MODEL] if "safetensors" in each]
    if found := next((each for each in weights if each in names), None):
        missing += _check_weights(folder, found)
    else:
        missing.append(f"{weights[0]} is missing")
    return missing


def _check_weights(folder: Path, name: str) -> Iterator[str]:
    """Yield what is wrong with the weights: with a file, or with an index and what it names."""
    index = name.endswith(".json")
    expected: dict[str, str] = json.loads((folder / name).read_text())["weight_map"] if index else {}
    held: set[str] = set()
    for each in sorted(set(expected.values())) or [name]:
        tensors = _read_header(folder / each)
        if tensors is None:
            yield f"{each} is missing or no safetensors file"
            continue
        held.update(tensors)
        if not tensors:
            yield f"{each} holds no tensors"
        if empty := [key for key, tensor in tensors.items() if 0 in tensor["shape"]]:
            yield f"{each}: {empty[0]} is empty"
        if wrapped := [key for key in tensors if any(each in key for each in _WRAPPERS)]:
            yield f"{each}: no library has {wrapped[0]}"
    if lost := sorted(set(expected) - held):
        yield f"{lost[0]} is in no file"


def _read_header(path: Path) -> dict[str, Any] | None:
    """Return the tensors that a safetensors file says it holds, by name, or None for another file or none."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_HEADER_BYTES), "little")
            header: dict[str, Any] = json.loads(file.read(size)) if 0 < size <= _MAX_HEADER else {}
    except (OSError, ValueError):
        return None
    header.pop("__metadata__", None)
    return header if size else None

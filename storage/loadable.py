"""The files of a checkpoint that a library loads: a model or an adapter with its tokenizer, without trainer state."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path

from storage.manifest import MANIFEST_FILE, list_files

ADAPTER = "adapter_config.json"
_MODEL = ("config.json", ADAPTER)  #: a folder with one of these is a library's model
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
        found = [path for path in found if any(fnmatch.fnmatch(path, each) for each in _LOADABLE)]
    return [path for path in found if path not in _WRITTEN_ANEW]


def is_model(paths: Iterable[str]) -> bool:
    """Return whether the Hugging Face libraries load a folder with these files."""
    return any(path in _MODEL for path in paths)


def is_adapter(paths: Iterable[str]) -> bool:
    """Return whether the files are an adapter, which needs its base model."""
    return ADAPTER in paths


def library_of(paths: Iterable[str]) -> str:
    """Return the library that loads these files: `peft`, `transformers`, or empty when none does."""
    found = list(paths)
    return "peft" if is_adapter(found) else "transformers" if is_model(found) else ""

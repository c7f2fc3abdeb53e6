"""What of a checkpoint can be loaded: a model or an adapter with its tokenizer, without the trainer's state."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from storage.manifest import NAME

ADAPTER = "adapter_config.json"
_MODEL = ("config.json", ADAPTER)  #: files with one of them are a library's model
_LOADABLE = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", ADAPTER, "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
    *("chat_template*", "*.tiktoken", "*preprocessor_config.json", "processor_config.json", "modules.json"),
)
_OURS = ("README.md", "relay.json", NAME)  #: written anew wherever it is published


def loadable(paths: Iterable[str]) -> list[str]:
    """Of the files of a folder, those to load it from. A program's own, which no library loads, are taken whole."""
    found = list(paths)
    if is_model(found):
        found = [path for path in found if any(fnmatch.fnmatch(path, each) for each in _LOADABLE)]
    return [path for path in found if path not in _OURS]


def is_model(paths: Iterable[str]) -> bool:
    """Whether the Hugging Face libraries load it."""
    return any(path in _MODEL for path in paths)


def is_adapter(paths: Iterable[str]) -> bool:
    """Whether it needs its base model."""
    return ADAPTER in paths

"""What of a checkpoint can be loaded: a model or an adapter with its tokenizer, without the trainer's state."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Mapping
from pathlib import Path

from relay.manifest import NAME, list_files

_MODEL = ("config.json", "adapter_config.json")  #: a folder with one of them is a library's model
_LOADABLE = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
    *("chat_template*", "*.tiktoken", "*preprocessor_config.json", "processor_config.json", "modules.json"),
)
_OURS = ("README.md", "relay.json", NAME)  #: written anew for each publication


def loadable(folder: Path) -> dict[str, Path]:
    """Files by their paths. A program's own checkpoint, which no library loads, is taken whole. Blocking."""
    files = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    if any(name in files for name in _MODEL):
        files = {name: path for name, path in files.items() if any(fnmatch.fnmatch(name, each) for each in _LOADABLE)}
    return {name: path for name, path in files.items() if name not in _OURS}


def is_adapter(files: Mapping[str, Path]) -> bool:
    """Whether it needs its base model."""
    return "adapter_config.json" in files


class MergeFailed(Exception):
    """The adapter cannot be merged; says why."""


async def merge(
    python: str, environment: Mapping[str, str], *, adapter: Path, run_file: Path, cwd: Path, into: Path
) -> str:
    """Merge an adapter into its base model, in a process, into a folder of its own; what the check said."""
    process = await asyncio.create_subprocess_exec(
        *(python, "-m", "trainers.merge", str(adapter), str(into), "--run-file", str(run_file), "--until-stdin-ends"),
        cwd=cwd,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdin=asyncio.subprocess.PIPE,  # it ends when we do
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        said = (await process.stdout.read()).decode(errors="replace").strip()
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    last = said.rpartition("\n")[2]
    if code:
        raise MergeFailed(last or f"it ended with {code}")
    return last

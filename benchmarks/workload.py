"""What the benchmarks train: a small Llama with random weights on short rows, as a run file with its model and data.

`python -m benchmarks.workload FOLDER SIZE` makes the model in a process of its own, so that benchmarks load no ML
library.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH = 64  #: tokens in a row
SIZES = {"tiny": (64, 2), "small": (128, 4), "medium": (1024, 8)}  #: hidden size, layers


@dataclass(frozen=True, slots=True)
class Workload:
    """A folder with `run.json`, `model/` and `rows.jsonl`; paths in the run file are relative to it."""

    folder: Path

    @property
    def run_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def spec(self) -> dict[str, Any]:
        """The run file's content."""
        spec: dict[str, Any] = json.loads(self.run_file.read_text())
        return spec


def prepare(folder: Path, size: str, *, steps: int, log_every: int, save_every: int, threads: int) -> Workload:
    """Makes model, rows and run file in a new folder; blocks for the seconds that the libraries take to load."""
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "benchmarks.workload", str(folder / "model"), size], check=True)
    rows = [{"text": f"{number:04d} " * (LENGTH // 5)} for number in range(64)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec = {
        "version": "relay/v1",
        "method": "sft",
        "model": {"name_or_path": "./model"},
        "data": {"train": "rows.jsonl"},
        "options": {
            "max_steps": steps,
            "logging_steps": log_every,
            "per_device_train_batch_size": 8,
            "max_length": LENGTH,
            "gradient_checkpointing": False,
        },
        "checkpoint": {"every": f"{save_every} steps"},
        "resources": {"gpus_per_node": 0},
        "env": {"OMP_NUM_THREADS": str(threads)},
    }
    (folder / "run.json").write_text(json.dumps(spec))
    return Workload(folder)


def _make_model(folder: Path, hidden: int, layers: int) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    letters = {letter: number for number, letter in enumerate(["<pad>", "<end>", *map(chr, range(32, 127))])}
    core = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(4, hidden // 64),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)


if __name__ == "__main__":
    _make_model(Path(sys.argv[1]), *SIZES[sys.argv[2]])

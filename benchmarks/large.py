"""Rows that do not fit into memory: SFT from a file of 5 GB of JSON lines, and the same again on the same host.

Memory is that of the largest process: what is resident at its peak, and how much of it is its own (the rest are pages
of files, which the kernel reclaims when needed). `python -m benchmarks.large FOLDER` makes the model.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Table
from trainers.data.cache import CACHE_VARIABLE

GB, QUICK = 5, 0.2
STEPS = 10
PARAGRAPHS, WORDS, VOCABULARY = 500, 5000, 4096
LONGEST = 256  #: tokens of a row that are trained on


@dataclass(frozen=True, slots=True)
class StartCost:
    """What one start took: seconds from the start to the first step's end, bytes at the peak."""

    seconds: float
    resident: int
    own: int


def measure(quick: bool) -> Table:
    """A row for each start."""
    size = round((QUICK if quick else GB) * 1e9)
    with tempfile.TemporaryDirectory(prefix="relay-bench-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "benchmarks.large", str(folder / "model")], check=True)
        rows = _write(folder / "rows.jsonl", size)
        (folder / "run.json").write_text(json.dumps(_run()))
        starts = {"first": _start(folder, "first"), "again": _start(folder, "again")}
    title = f"SFT from {size / 1e9:g} GB of JSON lines ({rows:,} rows, {len(os.sched_getaffinity(0))} cores)"
    columns = ("start", "until the first step", "MB/s", "peak resident", "of it own")
    return Table(title, columns, [_cells(which, each, size) for which, each in starts.items()])


def _cells(which: str, start: StartCost, size: int) -> tuple[str, ...]:
    speed = size / start.seconds / 1e6
    return (
        which,
        f"{start.seconds:.0f} s",
        f"{speed:.0f}",
        f"{start.resident / 1e6:.0f} MB",
        f"{start.own / 1e6:.0f} MB",
    )


def _run() -> dict[str, object]:
    return {
        "version": "relay/v1",
        "method": "sft",
        "model": {"name_or_path": "./model"},
        "data": {"train": "rows.jsonl", "eval": {"split": 0.001}, "streaming": True},
        "options": {
            "max_steps": STEPS,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "max_length": LONGEST,
            "eval_strategy": "no",
        },
        "resources": {"gpus_per_node": 0},
    }


def _texts() -> Iterator[str]:
    dice = random.Random(1)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 9))) for _ in range(WORDS)]
    for _ in range(PARAGRAPHS):
        yield " ".join(dice.choices(words, k=300))


def _write(path: Path, size: int) -> int:
    """Rows, each another, as many as make so many bytes."""
    texts, written, number = [*_texts()], 0, 0
    with path.open("w") as file:
        while written < size:
            written += file.write(f'{{"text": "{number} {texts[number % len(texts)]}"}}\n')
            number += 1
    return number


def _start(folder: Path, name: str) -> StartCost:
    began, resident, own, first = time.monotonic(), 0, 0, 0.0
    (folder / name).mkdir()
    run = {**json.loads((folder / "run.json").read_text()), "name": name}
    (folder / "run.json").write_text(json.dumps(run))
    argv = [sys.executable, "-m", "trainers", "run.json", "--runs", str(folder / "runs")]
    environment = os.environ | {CACHE_VARIABLE: str(folder / "cache")}
    with (folder / name / "log").open("w") as log:
        process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    while process.poll() is None:
        for at in [process.pid, *_children(process.pid)]:
            here, mine = _memory(at)
            resident, own = max(resident, here), max(own, mine)
        if not first and "step 1/" in (folder / name / "log").read_text():
            first = time.monotonic() - began
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError((folder / name / "log").read_text()[-2000:])
    return StartCost(first, resident, own)


def _children(pid: int) -> list[int]:
    try:
        found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return found + [below for each in found for below in _children(each)]


def _memory(pid: int) -> tuple[int, int]:
    """Bytes resident at the peak so far, and of the process's own now."""
    try:
        said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(said["VmHWM"].split()[0]) << 10, int(said["RssAnon"].split()[0]) << 10
    except (FileNotFoundError, ProcessLookupError, KeyError):  # it has ended
        return 0, 0


def _make_model(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(_texts(), VOCABULARY, show_progress=False, special_tokens=["<pad>", "<end>"])
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, pad_token="<pad>", eos_token="<end>")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    _make_model(Path(sys.argv[1]))

"""What our SFT costs over the same TRL script run bare: wall and CPU time of whole trainings, in interleaved pairs.

    python -m benchmarks.trainer_overhead [--pairs 10] [--steps 60] [--hidden 256]

Both train the same tiny model on the same rows with the same options and save once at the end. Each runs in a fork of
one process that has the libraries loaded, so start-up, which would drown the difference, is not in it. The interval
is the 95 % one of the mean of the pairs' ratios (Student's t).
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainers import rank
from trainers.contract import Contract
from trainers.control import CONTROL, PROCESSES

LENGTH = 64  #: tokens in a row
T_95 = {2: 12.71, 3: 4.30, 5: 2.78, 10: 2.26, 20: 2.09}  #: by number of pairs


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one training."""

    wall: float
    cpu: float


def measured(work: Callable[[], object]) -> Cost:
    """The cost of `work` in a fork of this process."""
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"the training ended with {os.waitstatus_to_exitcode(status)}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


def ours(folder: Path, run: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    contract = Contract(
        run_id="bench",
        attempt=1,
        run_file=folder / "run.json",
        output=folder / "output",
        staging=folder / "staging",
        events=folder / "events.jsonl",
        resume_from=None,
        pins={},
    )
    os.environ |= contract.to_environ() | {CONTROL: str(folder), PROCESSES: "1"}
    sys.argv = ["rank"]
    if rank.main():
        raise RuntimeError("refused")


def bare(folder: Path, run: dict[str, Any]) -> None:
    """The script a person would write."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(run["data"]["train"]).read_text().splitlines()]
    steps = run["options"]["max_steps"]
    args = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        save_steps=steps,
        seed=42,
        dataloader_pin_memory=False,
        **run["options"],
    )
    trainer = SFTTrainer(model=run["model"]["name_or_path"], args=args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()


def make_inputs(folder: Path, hidden: int, steps: int) -> dict[str, Any]:
    """A small Llama with random weights, rows of `LENGTH` bytes, and the run file for both."""
    measured(lambda: _make_model(folder / "model", hidden))
    rows = [{"text": f"{number:04d} " * (LENGTH // 5)} for number in range(64)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {
        "method": "sft",
        "model": {"name_or_path": str(folder / "model")},
        "data": {"train": str(folder / "rows.jsonl")},
        "options": {
            "max_steps": steps,
            "logging_steps": 10,
            "per_device_train_batch_size": 8,
            "gradient_checkpointing": False,
        },
        "checkpoint": {"every": f"{steps} steps"},
    }


def _make_model(folder: Path, hidden: int) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(["<pad>", "<end>", *map(chr, range(32, 127))])}
    core = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=6,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)


def interval(ratios: list[float]) -> str:
    """`1.004 [0.991, 1.017]`: the mean and its 95 % interval."""
    known = max((count for count in T_95 if count <= len(ratios)), default=2)
    half = T_95[known] * statistics.stdev(ratios) / math.sqrt(len(ratios))
    mean = statistics.mean(ratios)
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--hidden", type=int, default=256, help="of the model, six layers deep")
    args = parser.parse_args()
    import trainers.methods.sft
    import trainers.runtime  # noqa: F401

    pairs: list[tuple[Cost, Cost]] = []
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        folder = Path(name)
        run = make_inputs(folder, args.hidden, args.steps)
        for number in range(args.pairs):
            order = [("ours", ours), ("bare", bare)][:: 1 if number % 2 else -1]
            costs = {key: measured(partial(work, folder / f"{key}-{number}", run)) for key, work in order}
            pairs.append((costs["ours"], costs["bare"]))
    extra = statistics.mean(mine.cpu - plain.cpu for mine, plain in pairs) / args.steps
    whole = statistics.mean(plain.cpu for _, plain in pairs) / args.steps
    print(f"wall, ours / bare  {interval([mine.wall / plain.wall for mine, plain in pairs])}   n={len(pairs)}")
    print(f"CPU,  ours / bare  {interval([mine.cpu / plain.cpu for mine, plain in pairs])}")
    print(f"CPU seconds of ours per step  {extra:.5f} of {whole:.5f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

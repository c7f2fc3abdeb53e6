"""Whether RL learns: reasoning-gym's `spell_backward`, with a Llama of 0.9 million weights from scratch and disjoint
words.

SFT on spelt words is stopped early; GRPO and PPO start from its result, on words that are in neither. The figure is the
verified reward of answers sampled at temperature 1 on held-out words, four for each, before and after: the mean of the
differences by word, with its interval. Every stage is a run file and `python -m trainers`, as a user would start it.
Greedy answers may get worse meanwhile, so they are not measured.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.report import Table
from runfile import DataSource
from trainers.data import reasoning_gym

METHODS = ("grpo", "ppo")
LETTERS = "abcdefghijklmnopqrstuvwxyz>"
WORDS = {"min_word_len": 3, "max_word_len": 6}
ANSWERS = 4  #: to each held-out word


def measure(quick: bool) -> Table:
    """A row for each seed and method."""
    seeds, rows = range(1 if quick else 3), []
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        for seed in seeds:
            rows += list(_learn(Path(name) / str(seed), seed, 4 if quick else None))
    columns = ("", "seed", "SFT", "after", "gain [95 % interval]", "seconds")
    return Table("Verified reward of sampled answers, held-out words", columns, rows)


def _learn(folder: Path, seed: int, steps: int | None) -> Iterator[tuple[str, ...]]:
    folder.mkdir()
    held_out = _write_rows(folder, seed)
    _make_model(folder / "model", seed)
    _train(folder, "sft", {**_SFT, **({"max_steps": steps} if steps else {})}, "model", seed)
    start = folder / "runs" / "sft" / "output"
    before = _rewards(start, held_out, seed)
    for method in METHODS:
        began = time.monotonic()
        options = {**_OPTIONS[method], **({"max_steps": steps} if steps else {})}
        _train(folder, method, options, str(start.relative_to(folder)), seed)
        took = time.monotonic() - began
        after = _rewards(folder / "runs" / method / "output", held_out, seed)
        gains = [new - old for new, old in zip(after, before, strict=True)]
        around = 1.96 * stdev(gains) / len(gains) ** 0.5
        gain = f"{mean(gains):+.3f} [{mean(gains) - around:+.3f}, {mean(gains) + around:+.3f}]"
        yield method, str(seed), f"{mean(before):.3f}", f"{mean(after):.3f}", gain, f"{took:.0f}"


_SFT = {
    "max_steps": 100,
    "per_device_train_batch_size": 64,
    "learning_rate": 1e-3,
    "max_length": 16,
    "logging_steps": 50,
    "gradient_checkpointing": False,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {
        "max_steps": 120,
        "num_generations": 16,
        "per_device_train_batch_size": 256,
        "max_completion_length": 8,
        "learning_rate": 3e-4,
        "beta": 0.0,
        "logging_steps": 10,
        "gradient_checkpointing": False,
    },
    "ppo": {
        "max_steps": 320,
        "per_device_train_batch_size": 128,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": 8,
        "learning_rate": 3e-4,
        "kl_coef": 0.01,
        "vf_coef": 0.2,
        "logging_steps": 20,
        "gradient_checkpointing": False,
    },
}


def _write_rows(folder: Path, seed: int) -> list[dict[str, str]]:
    """`sft.jsonl` and `rl.jsonl`; the held-out rows, whose words are in neither. A prompt is the word alone."""
    held = [_row(task) for task in reasoning_gym.generate_rows(_words(400), 777 + seed)]
    words = {row["prompt"] for row in held}
    rest = [_row(task) for task in reasoning_gym.generate_rows(_words(20000), 11 + seed)]
    rows = [row for row in rest if row["prompt"] not in words]
    for name, part in (("sft", rows[: len(rows) // 2]), ("rl", rows[len(rows) // 2 :])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    return held


def _words(size: int) -> DataSource:
    return DataSource(reasoning_gym="spell_backward", config=WORDS, size=size)


def _row(task: dict[str, Any]) -> dict[str, str]:
    return {**task, "prompt": f"{task['answer'][::-1]}>"}


def _make_model(folder: Path, seed: int) -> None:
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<pad>", "<unk>", "<end>", *LETTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _train(folder: Path, method: str, options: dict[str, Any], model: str, seed: int) -> None:
    rewarded = {"rewards": [{"name": "reasoning_gym"}]} if method != "sft" else {}
    run = {
        "version": "relay/v1",
        "name": method,
        "method": method,
        "model": {"name_or_path": f"./{model}"},
        "data": {"train": "sft.jsonl" if method == "sft" else "rl.jsonl"},
        "seed": seed,
        "options": options,
        "checkpoint": {"every": "1000 steps", "keep": {"last": 1}},
        **rewarded,
    }
    (folder / f"{method}.json").write_text(json.dumps(run))
    argv = [sys.executable, "-m", "trainers", f"{method}.json"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{method} ended with {done.returncode}: {done.stderr[-2000:]}")


def _rewards(folder: Path, rows: Sequence[dict[str, str]], seed: int) -> list[float]:
    """The mean reward of the answers to each row."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True, return_token_type_ids=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        said = model.generate(**asked, do_sample=True, top_k=0, max_new_tokens=8, num_return_sequences=ANSWERS)
    answers = tokenizer.batch_decode(said[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = [reasoning_gym.score_answer(answer, rows[n // ANSWERS]["task"]) for n, answer in enumerate(answers)]
    return [mean(scores[n : n + ANSWERS]) for n in range(0, len(scores), ANSWERS)]

"""A tiny run of every method, and the files that it needs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

#: Marks of tests that need what an extra brings; `make extras` installs both.
needs_tasks = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="the extra `tasks` is not installed")
needs_evaluate = pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `evaluate` is not installed")

LORA = {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
#: The rows that a method learns from, options that matter for it, and where TRL keeps it.
METHODS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "sft": ("chat", {"max_length": 64}, "trl", "SFT"),
    "cpt": ("text", {"max_length": 64, "packing": True, "packing_strategy": "wrapped"}, "trl", "SFT"),
    "dpo": ("preference", {"disable_dropout": False}, "trl", "DPO"),
    "orpo": ("preference", {"disable_dropout": False}, "trl.experimental.orpo", "ORPO"),
    "cpo": ("preference", {"disable_dropout": False}, "trl.experimental.cpo", "CPO"),
    "kto": ("unpaired_preference", {"disable_dropout": False}, "trl", "KTO"),
    "reward": ("preference", {"disable_dropout": False}, "trl", "Reward"),
    "grpo": ("prompt", {"num_generations": 4, "max_completion_length": 6, "beta": 0.1}, "trl", "GRPO"),
    "rloo": ("prompt", {"num_generations": 4, "max_completion_length": 6}, "trl", "RLOO"),
    "ppo": (
        "prompt",
        {"max_completion_length": 6, "num_mini_batches": 2, "num_ppo_epochs": 2, "kl_target": 0.5, "kl_horizon": 50},
        "trainers.ppo",
        "PPO",
    ),
    "gkd": ("chat", {"max_length": 64, "max_new_tokens": 6, "lmbda": 0.5}, "trl.experimental.gkd", "GKD"),
    "distillation": ("prompt", {"max_completion_length": 6}, "trl", "Distillation"),
}
TAUGHT = ("gkd", "distillation")
REWARDED = ("grpo", "rloo", "ppo")
REWARDS = '''
"""What completions are worth, whatever they say: a model that has learnt nothing has answers that differ in length."""


def short(completions, **_):
    return [-len(completion) / 10 for completion in completions]


def digits(completions, answer):
    return [float(sum(letter in right for letter in said)) for said, right in zip(completions, answer, strict=True)]
'''


def fill(folder: Path) -> None:
    """Write `rows.jsonl` (prompts and completions), rows of other kinds in files named after the kind, `rewards.py`,
    and `teacher`, a model with other weights than `model`.
    """
    tiny.make_rows(folder / "rows.jsonl")
    for kind in ("text", "chat", "preference", "unpaired_preference", "prompt"):
        tiny.make_rows(folder / f"{kind}.jsonl", kind=kind)
    tiny.make_model(folder / "teacher", seed=1)
    (folder / "rewards.py").write_text(REWARDS)


def spec(work: Path, method: str, **changes: Any) -> dict[str, Any]:
    """Return a run file of six steps with a checkpoint in the middle, between two logs."""
    kind, options, *_ = METHODS[method]
    rows = [{"path": str(work / f"{kind}.jsonl")}]
    file = str(work / "rewards.py")
    rewards = [{"call": f"{file}:short"}, {"call": f"{file}:digits", "weight": 0.5}]
    return {
        **({"rewards": rewards, "files": [file]} if method in REWARDED else {}),
        **({"teacher": {"name_or_path": str(work / "teacher")}} if method in TAUGHT else {}),
        "version": "relay/v1",
        "method": method,
        "model": {"name_or_path": str(work / "model")},
        "data": {"train": rows, "eval": rows},
        "checkpoint": {"every": "3 steps"},
        **changes,
        "options": {
            "max_steps": 6,
            "logging_steps": 2,
            "eval_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
            **options,
            **changes.get("options", {}),
        },
    }

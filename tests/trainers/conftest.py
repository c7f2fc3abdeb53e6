"""One tiny model for all tests, and rows of every kind."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainers import specs


@pytest.fixture(scope="session")
def work(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and all that `specs.fill` puts there. Tests must write nothing else there."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "model").symlink_to(tiny_model)
    specs.fill(folder)
    return folder


@pytest.fixture
def run(work: Path) -> dict[str, Any]:
    """A run file of 20 steps with an epoch's end at step 11, which logs every 3 steps and evaluates every 6; paths are
    absolute.
    """
    return {
        "version": "relay/v1",
        "method": "sft",
        "model": {"name_or_path": str(work / "model")},
        "data": {"train": [{"path": str(work / "rows.jsonl")}], "eval": {"split": 0.1}},
        "options": {
            "max_steps": 20,
            "logging_steps": 3,
            "eval_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
        },
        "checkpoint": {"every": "20 steps"},
    }

"""Reward models on TRL's RewardTrainer, all weights or LoRA: a language model whose head gives one number.

The head is new (drawn by the run's seed) unless the model has one; with LoRA it is trained and saved whole beside the
adapter, as PEFT does for its task SEQ_CLS.
"""

from typing import Any

from trl import RewardConfig, RewardTrainer

from relay.runfile import RunFile
from trainers.beginning import SCORE
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.methods import building
from trainers.resumable import Resumable

KINDS = ("preference",)
TASK = SCORE


class ResumableReward(Resumable, RewardTrainer):
    """TRL's trainer; nothing of ours changes how it trains."""


def config_class() -> type[Any]:
    return RewardConfig


def configure(run: RunFile, owned: dict[str, Any]) -> RewardConfig:
    return RewardConfig(**{**run.options, **owned})


def build(run: RunFile, args: RewardConfig, model: LocalModel, train: Rows, held_out: Rows | None) -> Resumable:
    return building.build(ResumableReward, run, args, model, train, held_out, task=TASK)

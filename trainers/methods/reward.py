"""Reward models with TRL's RewardTrainer, for all weights or LoRA: a language model whose head gives one number.

The head is new (drawn with the run's seed) unless the model has one. With LoRA the head is trained and saved whole
beside the adapter, as PEFT does for its task SEQ_CLS.
"""

from typing import Any

from trl import RewardConfig, RewardTrainer

from trainers.batches import LossUnit, StepLoss
from trainers.methods.method import Method
from trainers.models.loading import SCORING_TASK
from trainers.resumable import ResumableTrainer


class ResumableReward(ResumableTrainer, RewardTrainer):
    why_rows_are_left_out = "an answer is longer than options.max_length"

    @classmethod
    def describe_step_loss(cls, args: Any) -> StepLoss:
        return StepLoss(LossUnit.ROW)


METHOD = Method(ResumableReward, RewardConfig, ("preference",), task=SCORING_TASK)

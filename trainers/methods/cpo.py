"""Contrastive preference optimization (and SimPO) with TRL's CPOTrainer, for all weights or LoRA, without a reference
model.

TRL keeps it in `trl.experimental`, so its options may change with TRL.
"""

from typing import Any

from trl.experimental.cpo import CPOConfig, CPOTrainer

from trainers.batches import LossUnit, StepLoss
from trainers.methods.method import FLOAT32_ON_ONE_DEVICE, Method
from trainers.resumable import ResumableTrainer
from trainers.truncation import RowFilter, has_labels_in_both


class ResumableCPO(ResumableTrainer, CPOTrainer):
    def build_row_filter(self) -> RowFilter:
        """The loss divides by the length of each answer, and TRL keeps answers that `max_length` has cut away."""
        return has_labels_in_both

    @classmethod
    def describe_step_loss(cls, args: Any) -> StepLoss:
        return StepLoss(LossUnit.MICRO_BATCH, "its likelihood is a mean over the tokens of a micro-batch")


METHOD = Method(ResumableCPO, CPOConfig, ("preference",), model_init_defaults=FLOAT32_ON_ONE_DEVICE)

"""Kahneman-Tversky optimization with TRL's KTOTrainer, for all weights or LoRA.

The reference is what the run began with: the initial model, or the adapter of `model.init_from`. Rows are taken in
their order, because each is compared with the completion of its neighbour in the batch.
"""

from typing import Any

from trl import KTOConfig, KTOTrainer

from trainers.batches import LossUnit, StepLoss
from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


class ResumableKTO(ResumableTrainer, KTOTrainer):
    @classmethod
    def describe_step_loss(cls, args: Any) -> StepLoss:
        if args.loss_type == "apo_zero_unpaired":
            return StepLoss(LossUnit.ROW)
        return StepLoss(LossUnit.PROCESS, "it compares with the mismatched pairs of the micro-batches of all processes")


METHOD = Method(ResumableKTO, KTOConfig, ("unpaired_preference",), uses_reference=True)

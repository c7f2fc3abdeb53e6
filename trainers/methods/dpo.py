"""Direct preference optimization with TRL's DPOTrainer, for all weights or LoRA.

The reference is what the run began with: the initial model, or the adapter of `model.init_from`.
"""

from typing import Any

from trl import DPOConfig, DPOTrainer

from trainers.batches import LossUnit, StepLoss
from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer

#: Losses that sort the rows of a micro-batch, or average over its tokens.
_COMPARED_IN_MICRO_BATCHES = frozenset({"aot", "aot_unpaired", "sft"})


class ResumableDPO(ResumableTrainer, DPOTrainer):
    @classmethod
    def describe_step_loss(cls, args: Any) -> StepLoss:
        beside = sorted(_COMPARED_IN_MICRO_BATCHES.intersection(args.loss_type))
        if beside:
            why = f"options.loss_type: {', '.join(beside)} is computed over the rows of a micro-batch"
            return StepLoss(LossUnit.MICRO_BATCH, why)
        return StepLoss(LossUnit.ROW)


METHOD = Method(ResumableDPO, DPOConfig, ("preference",), uses_reference=True)

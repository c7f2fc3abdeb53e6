"""Supervised fine-tuning with TRL's SFTTrainer, for all weights or LoRA."""

from typing import Any

from trl import SFTConfig, SFTTrainer

from trainers.batches import StepLoss, token_mean
from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer
from trainers.truncation import RowFilter, has_labels


class ResumableSFT(ResumableTrainer, SFTTrainer):
    loss_is_likelihood = True

    def build_row_filter(self) -> RowFilter | None:
        """TRL leaves out rows that are masked from end to end, but not when it packs them."""
        args: Any = self.args
        return has_labels if args.packing else None

    @classmethod
    def describe_step_loss(cls, args: Any) -> StepLoss:
        return token_mean(args)


METHOD = Method(ResumableSFT, SFTConfig, ("text", "prompt_completion", "chat"))

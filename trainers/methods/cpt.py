"""Continued pretraining with TRL's SFTTrainer, for all weights or LoRA: plain text, in which every token is learnt.

Its defaults differ from those of `sft`: texts, each with its end token, are concatenated and cut into blocks of
`max_length` (`packing`, `packing_strategy: wrapped`), so no text is cut short and no block is padded. Its rows are
`text` only, because a part of a dialogue is usually masked.
"""

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig, SFTTrainer

from trainers.batches import StepLoss, token_mean
from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


@dataclass
class CPTConfig(SFTConfig):
    """TRL's options with other defaults."""

    packing: bool = field(default=True)
    packing_strategy: str = field(default="wrapped")


class ResumableCPT(ResumableTrainer, SFTTrainer):
    loss_is_likelihood = True

    @classmethod
    def describe_step_loss(cls, args: Any) -> StepLoss:
        return token_mean(args)


METHOD = Method(ResumableCPT, CPTConfig, ("text",))

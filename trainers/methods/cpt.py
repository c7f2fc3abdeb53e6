"""Continued pretraining on TRL's SFTTrainer, all weights or LoRA: plain text, every token of which is learnt from.

What differs from `sft` is what is asked for where the run file says nothing: texts, each with its end token, are put
one after the other and cut into blocks of `max_length` (`packing`, `packing_strategy: wrapped`), so none is cut short
and no block is padded. And rows are `text` only: in dialogues a part is usually masked.
"""

from dataclasses import dataclass, field

from trl import SFTConfig, SFTTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


@dataclass
class CPTConfig(SFTConfig):
    """TRL's options with other defaults."""

    packing: bool = field(default=True)
    packing_strategy: str = field(default="wrapped")


class ResumableCPT(ResumableTrainer, SFTTrainer):
    loss_is_likelihood = True


METHOD = Method(ResumableCPT, CPTConfig, ("text",))

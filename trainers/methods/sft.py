"""Supervised fine-tuning with TRL's SFTTrainer, for all weights or LoRA."""

from trl import SFTConfig, SFTTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


class ResumableSFT(ResumableTrainer, SFTTrainer):
    loss_is_likelihood = True


METHOD = Method(ResumableSFT, SFTConfig, ("text", "prompt_completion", "chat"))

"""Supervised fine-tuning on TRL's SFTTrainer, all weights or LoRA."""

from trl import SFTConfig, SFTTrainer

from trainers.methods.method import Method
from trainers.resumable import Resumable


class ResumableSFT(Resumable, SFTTrainer):
    likelihood = True


METHOD = Method(ResumableSFT, SFTConfig, ("text", "prompt_completion", "chat"))

"""Odds ratio preference optimization with TRL's ORPOTrainer, for all weights or LoRA, without a reference model.

TRL keeps it in `trl.experimental`, so its options may change with TRL.
"""

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from trainers.methods.method import FLOAT32_ON_ONE_DEVICE, Method
from trainers.resumable import ResumableTrainer


class ResumableORPO(ResumableTrainer, ORPOTrainer):
    pass


METHOD = Method(ResumableORPO, ORPOConfig, ("preference",), model_init_defaults=FLOAT32_ON_ONE_DEVICE)

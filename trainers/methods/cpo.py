"""Contrastive preference optimization (and SimPO) with TRL's CPOTrainer, for all weights or LoRA, without a reference
model.

TRL keeps it in `trl.experimental`, so its options may change with TRL.
"""

from trl.experimental.cpo import CPOConfig, CPOTrainer

from trainers.methods.method import FLOAT32_ON_ONE_DEVICE, Method
from trainers.resumable import ResumableTrainer


class ResumableCPO(ResumableTrainer, CPOTrainer):
    pass


METHOD = Method(ResumableCPO, CPOConfig, ("preference",), model_init_defaults=FLOAT32_ON_ONE_DEVICE)

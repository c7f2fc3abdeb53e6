"""Contrastive preference optimization (and SimPO) on TRL's CPOTrainer, all weights or LoRA, without a reference model.

TRL keeps it in `trl.experimental`: what its options are called may change with TRL.
"""

from trl.experimental.cpo import CPOConfig, CPOTrainer

from trainers.methods.method import AS_THE_OTHERS, Method
from trainers.resumable import Resumable


class ResumableCPO(Resumable, CPOTrainer):
    pass


METHOD = Method(ResumableCPO, CPOConfig, ("preference",), loads=AS_THE_OTHERS)

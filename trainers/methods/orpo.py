"""Odds ratio preference optimization on TRL's ORPOTrainer, all weights or LoRA, without a reference model.

TRL keeps it in `trl.experimental`: what its options are called may change with TRL.
"""

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from trainers.methods.method import AS_THE_OTHERS, Method
from trainers.resumable import Resumable


class ResumableORPO(Resumable, ORPOTrainer):
    pass


METHOD = Method(ResumableORPO, ORPOConfig, ("preference",), loads=AS_THE_OTHERS)

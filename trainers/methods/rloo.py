"""REINFORCE leave-one-out on TRL's RLOOTrainer, all weights or LoRA.

Its rewards are the run file's. Completions come from transformers or vLLM (`use_vllm`); what vLLM draws is not part of
a checkpoint, so with it a resumed run is not bit for bit the one that was never cut.
"""

from trl import RLOOConfig, RLOOTrainer

from trainers.methods.method import Method
from trainers.methods.on_policy import RewardedTrainer


class ResumableRLOO(RewardedTrainer, RLOOTrainer):
    pass


METHOD = Method(ResumableRLOO, RLOOConfig, ("prompt",), uses_rewards=True)

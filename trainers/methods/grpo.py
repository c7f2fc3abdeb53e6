"""Group relative policy optimization on TRL's GRPOTrainer, all weights or LoRA.

Its rewards are the run file's. Completions come from transformers or vLLM (`use_vllm`); what vLLM draws is not part of
a checkpoint, so with it a resumed run is not bit for bit the one that was never cut.
"""

from trl import GRPOConfig, GRPOTrainer

from trainers.methods.method import Method
from trainers.methods.on_policy import RewardedTrainer


class ResumableGRPO(RewardedTrainer, GRPOTrainer):
    pass


METHOD = Method(ResumableGRPO, GRPOConfig, ("prompt",), uses_rewards=True)

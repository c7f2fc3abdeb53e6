"""Group relative policy optimization with TRL's GRPOTrainer, for all weights or LoRA.

Its rewards are the run file's. Completions come from transformers or vLLM (`use_vllm`). The state of vLLM's sampling is
not part of a checkpoint, so with vLLM a resumed run is not bit for bit the uninterrupted one.
"""

from trl import GRPOConfig, GRPOTrainer

from trainers.methods.method import Method
from trainers.methods.on_policy import RewardedTrainer


class ResumableGRPO(RewardedTrainer, GRPOTrainer):
    pass


METHOD = Method(ResumableGRPO, GRPOConfig, ("prompt",), uses_rewards=True)

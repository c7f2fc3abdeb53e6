"""REINFORCE leave-one-out with TRL's RLOOTrainer, for all weights or LoRA.

Its rewards are the run file's. Completions come from transformers or vLLM (`use_vllm`). The state of vLLM's sampling is
not part of a checkpoint, so with vLLM a resumed run is not bit for bit the uninterrupted one.
"""

from trl import RLOOConfig, RLOOTrainer

from trainers.methods.method import Method
from trainers.methods.on_policy import RewardedTrainer


class ResumableRLOO(RewardedTrainer, RLOOTrainer):
    pass


METHOD = Method(ResumableRLOO, RLOOConfig, ("prompt",), uses_rewards=True)

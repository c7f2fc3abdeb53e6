"""Proximal policy optimization (`trainers.ppo`), all weights or LoRA, with transformers' own generation and DDP."""

from trainers.methods.method import AS_THE_OTHERS, Method
from trainers.ppo.config import PPOConfig
from trainers.ppo.trainer import PPOTrainer

METHOD = Method(PPOTrainer, PPOConfig, ("prompt",), compares=True, rewarded=True, loads=AS_THE_OTHERS)

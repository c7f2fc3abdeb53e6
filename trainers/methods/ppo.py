"""Proximal policy optimization (`trainers.ppo`), for all weights or LoRA, with transformers' own generation and DDP."""

from trainers.methods.method import FLOAT32_ON_ONE_DEVICE, Method
from trainers.ppo.config import PPOConfig
from trainers.ppo.trainer import PPOTrainer

METHOD = Method(
    PPOTrainer,
    PPOConfig,
    ("prompt",),
    uses_reference=True,
    uses_rewards=True,
    model_init_defaults=FLOAT32_ON_ONE_DEVICE,
)

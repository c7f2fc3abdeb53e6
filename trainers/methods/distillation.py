"""On-policy distillation with TRL's DistillationTrainer, for all weights or LoRA: the student answers, and learns the
teacher's distribution over every token of its answer.
"""

from typing import Any

from trl import DistillationConfig, DistillationTrainer

from trainers.methods.method import Method
from trainers.methods.on_policy import OnPolicyTrainer


class ResumableDistillation(OnPolicyTrainer, DistillationTrainer):
    """TRL's trainer, which calls the models past the wrapper that computes in the type that the options ask for."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self.accelerator.autocast():
            return super().compute_loss(*args, **kwargs)


METHOD = Method(ResumableDistillation, DistillationConfig, ("prompt",), uses_teacher=True)

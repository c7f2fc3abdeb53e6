"""On-policy distillation with TRL's DistillationTrainer, for all weights or LoRA: the student answers, and learns the
teacher's distribution over every token of its answer.
"""

from trl import DistillationConfig, DistillationTrainer

from trainers.methods.method import Method
from trainers.methods.on_policy import OnPolicyTrainer


class ResumableDistillation(OnPolicyTrainer, DistillationTrainer):
    pass


METHOD = Method(ResumableDistillation, DistillationConfig, ("prompt",), uses_teacher=True)

"""Generalized knowledge distillation on TRL's GKDTrainer, all weights or LoRA: a student learns a teacher's
distribution, on dialogues and, for a share `lmbda` of the batches, on answers of its own.

TRL keeps it in `trl.experimental`: what its options are called may change with TRL.
"""

from typing import Any

from trl.experimental.gkd import GKDConfig, GKDTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


class ResumableGKD(ResumableTrainer, GKDTrainer):
    """TRL samples answers before it puts the model into training, so with or without dropout by what came before."""

    def collect_extra_state(self) -> dict[str, Any]:
        model: Any = self.model
        return {"training": model.training}

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        model: Any = self.model
        model.train(state.get("training", True))


METHOD = Method(ResumableGKD, GKDConfig, ("chat",), uses_teacher=True, needs_tokenizer=True)

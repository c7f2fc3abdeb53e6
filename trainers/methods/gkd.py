"""Generalized knowledge distillation with TRL's GKDTrainer, for all weights or LoRA: a student learns a teacher's
distribution, on dialogues and, for a share `lmbda` of the batches, on its own answers.

TRL keeps it in `trl.experimental`, so its options may change with TRL.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from trl.experimental.gkd import GKDConfig, GKDTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer
from trainers.truncation import RowFilter, has_labels


class ResumableGKD(ResumableTrainer, GKDTrainer):
    """TRL's trainer, which samples answers before it puts the model into training mode. Whether dropout is on depends
    on what came before, so the mode is part of the checkpoint.
    """

    why_rows_are_left_out = "the question or the last answer is cut away by options.max_length"

    def build_row_filter(self) -> RowFilter:
        return partial(_teaches, self.data_collator)

    def generate_on_policy_outputs(self, *args: Any) -> Any:  # type: ignore[override]
        """Generate in the type that the trainer computes in, as `OnPolicyTrainer` does."""
        with self.during("generating"), self.accelerator.autocast():
            return GKDTrainer.generate_on_policy_outputs(*args)

    def collect_extra_state(self) -> dict[str, Any]:
        model: Any = self.model
        return {"training": model.training}

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        model: Any = self.model
        model.train(state.get("training", True))


def _teaches(collate: Any, row: Mapping[str, Any]) -> bool:
    """Return True when TRL's collator leaves something of a row's question and of its answer."""
    try:
        return has_labels({"labels": collate([row])["labels"][0].tolist()})
    except ValueError as error:
        if "no prompt tokens left" in str(error):
            return False
        raise


METHOD = Method(ResumableGKD, GKDConfig, ("chat",), uses_teacher=True, needs_tokenizer=True)

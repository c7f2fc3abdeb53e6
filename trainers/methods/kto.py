"""Kahneman-Tversky optimization with TRL's KTOTrainer, for all weights or LoRA.

The reference is what the run began with: the initial model, or the adapter of `model.init_from`. Rows are taken in
their order, because each is compared with the completion of its neighbour in the batch.
"""

from trl import KTOConfig, KTOTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


class ResumableKTO(ResumableTrainer, KTOTrainer):
    pass


METHOD = Method(ResumableKTO, KTOConfig, ("unpaired_preference",), uses_reference=True)

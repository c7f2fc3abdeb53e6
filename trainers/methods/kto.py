"""Kahneman-Tversky optimization on TRL's KTOTrainer, all weights or LoRA.

The reference is what the run began with: the model, or the adapter that it goes on with. Rows are taken in the order of
the data: each is compared with the completion of its neighbour in the batch.
"""

from trl import KTOConfig, KTOTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


class ResumableKTO(ResumableTrainer, KTOTrainer):
    pass


METHOD = Method(ResumableKTO, KTOConfig, ("unpaired_preference",), uses_reference=True)

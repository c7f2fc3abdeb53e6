"""Direct preference optimization on TRL's DPOTrainer, all weights or LoRA.

The reference is what the run began with: the model, or the adapter that it goes on with.
"""

from trl import DPOConfig, DPOTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


class ResumableDPO(ResumableTrainer, DPOTrainer):
    pass


METHOD = Method(ResumableDPO, DPOConfig, ("preference",), uses_reference=True)

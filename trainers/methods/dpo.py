"""Direct preference optimization with TRL's DPOTrainer, for all weights or LoRA.

The reference is what the run began with: the initial model, or the adapter of `model.init_from`.
"""

from trl import DPOConfig, DPOTrainer

from trainers.methods.method import Method
from trainers.resumable import ResumableTrainer


class ResumableDPO(ResumableTrainer, DPOTrainer):
    pass


METHOD = Method(ResumableDPO, DPOConfig, ("preference",), uses_reference=True)

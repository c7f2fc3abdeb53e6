"""Direct preference optimization on TRL's DPOTrainer, all weights or LoRA.

The reference is what the run began with: the model, or the adapter that it goes on with.
"""

from typing import Any

from trl import DPOConfig, DPOTrainer

from relay.runfile import RunFile
from trainers.beginning import LANGUAGE
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.methods import building
from trainers.resumable import Resumable

KINDS = ("preference",)
TASK = LANGUAGE


class ResumableDPO(Resumable, DPOTrainer):
    """TRL's trainer; nothing of ours changes how it trains."""


def config_class() -> type[Any]:
    return DPOConfig


def configure(run: RunFile, owned: dict[str, Any]) -> DPOConfig:
    return DPOConfig(**{**run.options, **owned})


def build(run: RunFile, args: DPOConfig, model: LocalModel, train: Rows, held_out: Rows | None) -> Resumable:
    return building.build(ResumableDPO, run, args, model, train, held_out, compares=True)

"""Kahneman-Tversky optimization on TRL's KTOTrainer, all weights or LoRA.

The reference is what the run began with: the model, or the adapter that it goes on with. Rows are taken in the order of
the data: each is compared with the completion of its neighbour in the batch.
"""

from typing import Any

from trl import KTOConfig, KTOTrainer

from relay.runfile import RunFile
from trainers.beginning import LANGUAGE
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.methods import building
from trainers.resumable import Resumable

KINDS = ("unpaired_preference",)
TASK = LANGUAGE


class ResumableKTO(Resumable, KTOTrainer):
    """TRL's trainer; nothing of ours changes how it trains."""


def config_class() -> type[Any]:
    return KTOConfig


def configure(run: RunFile, owned: dict[str, Any]) -> KTOConfig:
    return KTOConfig(**{**run.options, **owned})


def build(run: RunFile, args: KTOConfig, model: LocalModel, train: Rows, held_out: Rows | None) -> Resumable:
    return building.build(ResumableKTO, run, args, model, train, held_out, compares=True)

"""Contrastive preference optimization (and SimPO) on TRL's CPOTrainer, all weights or LoRA, without a reference model.

TRL keeps it in `trl.experimental`: what its options are called may change with TRL.
"""

from typing import Any

from trl.experimental.cpo import CPOConfig, CPOTrainer

from relay.runfile import RunFile
from trainers.beginning import LANGUAGE
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.methods import building
from trainers.resumable import Resumable

KINDS = ("preference",)
TASK = LANGUAGE
#: Left to itself this trainer loads the type that lies on disk, and spreads the model over all GPUs in every rank.
_AS_THE_OTHERS = {"dtype": "float32", "device_map": None}


class ResumableCPO(Resumable, CPOTrainer):
    """TRL's trainer; nothing of ours changes how it trains."""


def config_class() -> type[Any]:
    return CPOConfig


def configure(run: RunFile, owned: dict[str, Any]) -> CPOConfig:
    return CPOConfig(**{**run.options, **owned})


def build(run: RunFile, args: CPOConfig, model: LocalModel, train: Rows, held_out: Rows | None) -> Resumable:
    return building.build(ResumableCPO, run, args, model, train, held_out, model_init=_AS_THE_OTHERS)

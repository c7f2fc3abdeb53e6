"""Supervised fine-tuning on TRL's SFTTrainer, all weights or LoRA."""

from typing import Any

from trl import SFTConfig, SFTTrainer

from relay.runfile import RunFile
from trainers.beginning import LANGUAGE
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.methods import building
from trainers.resumable import Resumable

KINDS = ("text", "prompt_completion", "chat")
TASK = LANGUAGE


class ResumableSFT(Resumable, SFTTrainer):
    """TRL's trainer; nothing of ours changes how it trains."""

    likelihood = True


def config_class() -> type[Any]:
    return SFTConfig


def configure(run: RunFile, owned: dict[str, Any]) -> SFTConfig:
    return SFTConfig(**{**run.options, **owned})


def build(run: RunFile, args: SFTConfig, model: LocalModel, train: Rows, held_out: Rows | None) -> Resumable:
    return building.build(ResumableSFT, run, args, model, train, held_out)

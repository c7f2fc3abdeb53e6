"""Continued pretraining on TRL's SFTTrainer, all weights or LoRA: plain text, every token of which is learnt from.

What differs from `sft` is what is asked for where the run file says nothing: texts, each with its end token, are put
one after the other and cut into blocks of `max_length` (`packing`, `packing_strategy: wrapped`), so none is cut short
and no block is padded. And rows are `text` only: in dialogues a part is usually masked.
"""

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig, SFTTrainer

from relay.runfile import RunFile
from trainers.beginning import LANGUAGE
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.methods import building
from trainers.resumable import Resumable

KINDS = ("text",)
TASK = LANGUAGE


@dataclass
class CPTConfig(SFTConfig):
    """TRL's options with other defaults."""

    packing: bool = field(default=True)
    packing_strategy: str = field(default="wrapped")


class ResumableCPT(Resumable, SFTTrainer):
    """TRL's trainer; nothing of ours changes how it trains."""

    likelihood = True


def config_class() -> type[Any]:
    return CPTConfig


def configure(run: RunFile, owned: dict[str, Any]) -> CPTConfig:
    return CPTConfig(**{**run.options, **owned})


def build(run: RunFile, args: CPTConfig, model: LocalModel, train: Rows, held_out: Rows | None) -> Resumable:
    return building.build(ResumableCPT, run, args, model, train, held_out)

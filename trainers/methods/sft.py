"""Supervised fine-tuning on TRL's SFTTrainer, all weights or LoRA."""

from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from relay.runfile import RunFile
from trainers.beginning import begin
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.resumable import Resumable

KINDS = ("text", "prompt_completion", "chat")


class ResumableSFT(Resumable, SFTTrainer):
    """TRL's trainer; nothing of ours changes how it trains."""


def config_class() -> type[Any]:
    return SFTConfig


def configure(run: RunFile, owned: dict[str, Any]) -> SFTConfig:
    return SFTConfig(**{**run.options, **owned})


def build(run: RunFile, args: SFTConfig, model: LocalModel, train: Rows, held_out: Rows | None) -> Resumable:
    begun = begin(run, model)
    args.model_init_kwargs = begun.model_init
    trainer = ResumableSFT(
        model=begun.model,
        args=args,
        train_dataset=Dataset.from_list(list(train.rows)),
        eval_dataset=Dataset.from_list(list(held_out.rows)) if held_out else None,
        processing_class=begun.tokenizer,
        peft_config=begun.lora,
    )
    trainer.base = model
    return trainer

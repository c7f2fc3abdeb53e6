"""How every method's library trainer is made: its model, rows and adapter are found the same way."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from relay.runfile import RunFile
from trainers.beginning import LANGUAGE, begin, reference
from trainers.data import Rows
from trainers.hub import LocalModel
from trainers.resumable import Resumable


def build(
    library: type[Resumable],
    run: RunFile,
    args: Any,
    model: LocalModel,
    train: Rows,
    held_out: Rows | None,
    *,
    task: str = LANGUAGE,
    compares: bool = False,
    model_init: Mapping[str, Any] | None = None,
) -> Resumable:
    """`compares` is for a method with a reference model; `model_init` holds defaults for what the run file says."""
    begun = begin(run, model, task)
    args.model_init_kwargs = None if begun.model_init is None else {**(model_init or {}), **begun.model_init}
    made: Any = library
    trainer: Resumable = made(
        model=begun.model,
        args=args,
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out) if held_out else None,
        processing_class=begun.tokenizer,
        peft_config=begun.lora,
        **({"ref_model": reference(begun)} if compares else {}),
    )
    trainer.base = model
    return trainer


def _dataset(rows: Rows) -> Dataset:
    return Dataset.from_list(list(rows.rows))

"""What the libraries would complain about in the middle of `train()`, found before the first step.

Optimizer and learning-rate schedule are built for a stand-in; rows go through the chat template; the tokens that the
tokenizer may write are compared with the model's embeddings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import Trainer, TrainingArguments
from transformers.optimization import get_scheduler
from transformers.trainer_optimizer import is_optimizer_factory

from trainers.data.loading import Rows
from trainers.data.row_formats import Row
from trainers.errors import ConfigError, errors_attributed_to, put_in_one_line

_SOME_STEPS = 1000  #: the length of the schedule that is tried, where only epochs are given
#: What an optimizer's settings hold when it wants a real model, whose modules the options name.
_OF_THE_MODEL = ("params", "model", "optimizer_dict")
_ID_SUFFIX = "_ids"  #: how the columns of tokens end: input_ids, chosen_ids, prompt_ids …
_NAMED_TOKENS = 3


def require_optimizer(args: TrainingArguments) -> None:
    """Build the optimizer and the schedule for a stand-in of the model, and take one step.

    Raises ConfigError for what they do not take, and HostError for a package that this host lacks.
    """
    stand_in, steps = torch.nn.Linear(1, 1), args.max_steps if args.max_steps > 0 else _SOME_STEPS
    with errors_attributed_to(f"options.optim: {_value(args.optim)}"):
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, stand_in)  # type: ignore[arg-type]
        if is_optimizer_factory(kind) or settings.keys() & set(_OF_THE_MODEL):
            return  # `ResumableTrainer.create_optimizer` names what the real model does not take
        groups = [{"params": list(stand_in.parameters()), "weight_decay": args.weight_decay}]
        optimizer = kind(groups, **settings)
    with errors_attributed_to(f"options.lr_scheduler_type: {_value(args.lr_scheduler_type)}"):
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
        )
        if not isinstance(schedule, ReduceLROnPlateau):
            for _ in range(2):
                schedule.step()


def _value(option: Any) -> str:
    """Return an option as the run file gives it."""
    return str(getattr(option, "value", option))


def require_rendered_rows(
    named: Mapping[str, Rows | None], tokenizer: Any, locate: Callable[[Row], str | None]
) -> None:
    """Raise ConfigError for the first row that the chat template refuses. `named` holds rows by the key of the run file
    that they come from, and `locate` returns the file and line of one.
    """
    for key, rows in named.items():
        for row in rows.rows if rows is not None else ():
            try:
                render_row(tokenizer, row)
            except TemplateError as error:
                place = locate(row) or key
                raise ConfigError(f"{place}: the chat template refuses it: {put_in_one_line(error)}") from error


def render_row(tokenizer: Any, row: Row) -> list[str]:
    """Return the texts that trainers make of a row's conversations; none for a row of plain text. Raises jinja2's
    TemplateError where the chat template refuses one.
    """
    if "messages" in row:
        return [_render(tokenizer, row["messages"])]
    conversations = {name: row[name] for name in ("prompt", "completion", "chosen", "rejected") if name in row}
    if not all(isinstance(turns, list) for turns in conversations.values()):
        return []
    prompt = conversations.pop("prompt", [])
    asked = [_render(tokenizer, prompt, add_generation_prompt=True)] if prompt else []
    return asked + [_render(tokenizer, [*prompt, *answer]) for answer in conversations.values()]


def _render(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **how: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **how))


def is_tokenized(dataset: Any) -> bool:
    """Return True when the trainer has tokenized its rows already, False when it will while it trains."""
    columns = getattr(dataset, "column_names", None) or ()
    return any(name.endswith(_ID_SUFFIX) for name in columns)


def require_embeddings(trainer: Any) -> None:
    """Raise ConfigError for a token that training uses and the model has no embedding for.

    Padding and end are used by every batch. A token that no row has may lie beyond the embeddings: some models are
    published so.
    """
    model, tokenizer = trainer.model, trainer.processing_class
    embeddings: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if tokenizer is None or not hasattr(embeddings, "num_embeddings"):
        return
    count = int(embeddings.num_embeddings)
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= count}
    if not beyond:
        return
    for name in ("pad_token", "eos_token"):
        if (number := getattr(tokenizer, f"{name}_id")) in beyond:
            raise ConfigError(_describe_beyond(f"the tokenizer's {name}", {number: beyond[number]}, count))
    for key, dataset in (("data.train", trainer.train_dataset), ("data.eval", trainer.eval_dataset)):
        if used := {number: beyond[number] for number in _list_tokens(dataset) if number in beyond}:
            raise ConfigError(_describe_beyond(key, used, count))


def _describe_beyond(where: str, tokens: Mapping[int, str], count: int) -> str:
    """Return in one line that tokens have no embedding, and the cure."""
    named = ", ".join(f"{token} (id {number})" for number, token in sorted(tokens.items())[:_NAMED_TOKENS])
    return (
        f"{where}: {named} has no embedding in the model, which has {count}; take the tokenizer of the model, "
        "or give the model the missing rows (resize_token_embeddings) and train them (lora.modules_to_save)"
    )


def _list_tokens(dataset: Any) -> Iterator[int]:
    """Yield each token of a tokenized data set once; none of one that is tokenized while it trains."""
    if not is_tokenized(dataset) or not hasattr(dataset, "with_format"):
        return
    seen: set[int] = set()
    table = dataset.with_format("arrow")
    for name in dataset.column_names:
        if name.endswith(_ID_SUFFIX):
            for batch in table.select_columns([name]).iter(batch_size=1000):
                column = batch.column(name).combine_chunks()
                while hasattr(column, "flatten") and column.type.num_fields:
                    column = column.flatten()
                new = {int(number) for number in np.unique(column.to_numpy(zero_copy_only=False))} - seen
                seen |= new
                yield from new

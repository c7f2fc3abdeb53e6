"""Generating completions with transformers, for prompts that are text or messages."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

Turns = str | Sequence[Mapping[str, str]]  #: text, or messages


def tokenize_prompt(tokenizer: Any, prompt: Turns) -> list[int]:
    """Return the tokens that the model is given for a prompt; at least one."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
    else:
        text = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids or [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a completion, sorted: the model's own and the tokenizer's."""
    made_with = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = made_with if isinstance(made_with, list) else [made_with]
    return sorted({each for each in (*ids, tokenizer.eos_token_id) if each is not None})


def generate_completions(
    model: Any, prompts: Sequence[Sequence[int]], how: GenerationConfig
) -> tuple[Tensor, Tensor, int]:
    """Complete the prompts. Return three things: prompts and completions as ids, (rows, tokens); a mask of the same
    shape that is 0 for padding on the left; and the column at which completions begin. Only the settings in `how`
    count.
    """
    width = max(map(len, prompts))
    ids = [[how.pad_token_id] * (width - len(each)) + list(each) for each in prompts]
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=model.device)
    with torch.no_grad(), evaluation_mode(model), without_generation_defaults(model):
        made: Tensor = model.generate(
            input_ids=torch.tensor(ids, device=model.device), attention_mask=mask, generation_config=how
        )
    return made, torch.nn.functional.pad(mask, (0, made.shape[1] - width), value=1), width


def decode_completions(tokenizer: Any, completions: Sequence[Sequence[int]], *, as_messages: bool) -> list[Any]:
    """Return completions as rewards are given them: as text, or each as one message of the assistant."""
    texts = tokenizer.batch_decode([list(each) for each in completions], skip_special_tokens=True)
    return [[{"role": "assistant", "content": text}] for text in texts] if as_messages else list(texts)


@contextmanager
def without_generation_defaults(model: Any) -> Iterator[None]:
    """Remove the generation config that the model came with. The library takes from it what the caller leaves open (a
    repetition penalty, banned tokens), and then does not sample from the model's own distribution.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter looks it up there
    came_with, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = came_with


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Switch off dropout and allow the cache, which a model with recomputation has only then; restore every part's
    mode.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode

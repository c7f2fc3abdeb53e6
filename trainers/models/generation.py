"""Completions by transformers' own generation, of prompts that are text or messages."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

Turns = str | Sequence[Mapping[str, str]]  #: text, or messages


def tokenize_prompt(tokenizer: Any, prompt: Turns) -> list[int]:
    """A prompt as the model is given it, at least one token."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
    else:
        text = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids or [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a completion, in order; those that the model was made with, and the tokenizer's."""
    made_with = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = made_with if isinstance(made_with, list) else [made_with]
    return sorted({each for each in (*ids, tokenizer.eos_token_id) if each is not None})


def generate_completions(
    model: Any, prompts: Sequence[Sequence[int]], how: GenerationConfig
) -> tuple[Tensor, Tensor, int]:
    """Prompts and completions, (rows, tokens); which of them are a prompt's or come after it, as 1; and where the
    completions begin. Prompts are filled up on the left with the token that `how` says, and `how` is all that counts.
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
    """Completions as text, or each as the one message of an assistant: as rewards are given them."""
    texts = tokenizer.batch_decode([list(each) for each in completions], skip_special_tokens=True)
    return [[{"role": "assistant", "content": text}] for text in texts] if as_messages else list(texts)


@contextmanager
def without_generation_defaults(model: Any) -> Iterator[None]:
    """Without the generation config that the model came with: the library takes from it whatever the caller leaves open
    (a repetition penalty, banned tokens), and then completions are drawn from another distribution than the model's.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter looks it up there
    came_with, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = came_with


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Without dropout, and with the cache that a model with recomputation has only then; afterwards each part is in the
    mode it was in.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode

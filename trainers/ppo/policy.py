"""A language model with a value head, which gives one number for each token from the last hidden state."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl.trainer.utils import use_adapter

from trainers.ppo.losses import log_probabilities

REFERENCE = "ref"  #: the name of the reference adapter
HEAD = "value_head"  #: the name of the submodule and of its file
HEAD_FILE = f"{HEAD}.safetensors"


def add_value_head(model: Any) -> None:
    """Add the value head as a submodule, so that it is moved, wrapped and optimized with the model. It starts at zero
    and thus predicts nothing, whatever the model's size.
    """
    width = model.get_output_embeddings().weight.shape[-1]
    like = model.get_output_embeddings().weight
    head = nn.Linear(width, 1, device=like.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    setattr(model, HEAD, head)


def disable_dropout(model: nn.Module) -> None:
    """Disable dropout, both of modules and of the numbers that functions take (attention's, in transformers)."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in [name for name, value in vars(part).items() if "dropout" in name and isinstance(value, float)]:
            setattr(part, name, 0.0)


def remove_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the model without the value head."""
    return {name: value for name, value in state.items() if not name.startswith(f"{HEAD}.")}


def save_head(model: Any, folder: Path) -> None:
    """Save the value head in `folder`."""
    head: nn.Module = getattr(model, HEAD)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}, folder / HEAD_FILE
    )


def has_head(folder: Path) -> bool:
    """Return True where `save_head` has written a value head."""
    return (folder / HEAD_FILE).is_file()


def load_head(model: Any, folder: Path) -> None:
    """Load the value head where there is one."""
    head: nn.Module = getattr(model, HEAD)
    if has_head(folder):
        head.load_state_dict(load_file(folder / HEAD_FILE))


def logits_and_states(
    model: Any, ids: Tensor, attention: Tensor, completion: int, temperature: float, *, with_states: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the logits from which the last `completion` tokens of `ids` were sampled, (rows, completion, vocabulary),
    and the states before those tokens, (rows, completion, width). `model` may be wrapped (DDP).
    """
    out = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=(attention.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
        output_hidden_states=with_states,
        logits_to_keep=completion + 1,
    )
    logits = out.logits[:, -completion - 1 : -1].float() / temperature
    return logits, out.hidden_states[-1][:, -completion - 1 : -1] if with_states else None


def compute_values(model: Any, states: Tensor) -> Tensor:
    """Return the value head's output, (rows, tokens), in float32 under autocast too: it is a sum over thousands of
    numbers, and what it is fitted to. A token's value is that of the state in which it was chosen.
    """
    head: nn.Linear = getattr(model, HEAD)
    with torch.autocast(states.device.type, enabled=False):
        values: Tensor = head(states.to(head.weight.dtype)).squeeze(-1)
    return values


def add_reference_adapter(model: Any) -> None:
    """Keep a copy of an adapter that comes from another run, as the reference of the policy."""
    model.add_adapter(REFERENCE, model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            kept = model.get_parameter(name.replace(".default.", f".{REFERENCE}."))
            kept.data.copy_(parameter.data)
            kept.requires_grad_(False)


def reference_active(model: Any) -> AbstractContextManager[None]:
    """Return a context in which a model with an adapter is the reference: without its adapter, or with the
    copy of it.
    """
    context: AbstractContextManager[None] = use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None)
    return context


def reference_log_probabilities(
    model: Any, reference: Any, ids: Tensor, attention: Tensor, completion: int, temperature: float
) -> Tensor:
    """Return the log-probabilities of completions under the reference, or where there is none under the
    initial model.
    """
    with nullcontext() if reference is not None else reference_active(model):
        inner = model if reference is None else reference
        logits, _ = logits_and_states(inner, ids, attention, completion, temperature, with_states=False)
    return log_probabilities(logits, ids[:, -completion:])

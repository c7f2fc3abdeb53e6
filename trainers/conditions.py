"""What an attempt trains with beyond what the run file says: libraries, GPU, precision and attention. Checkpoints keep
it, and an attempt that resumes says how faithfully it can go on.
"""

import enum
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Conditions = Mapping[str, str]

_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "relay-training")
_DEVICE, _PRECISION, _WEIGHTS, _TF32, _ATTENTION = "device", "precision", "weights", "tf32", "attention"


class Fidelity(enum.StrEnum):
    """How an attempt goes on, compared with one that was never interrupted; the worst comes last."""

    EXACT = "exact"  #: every bit is the same
    CLOSE = "close"  #: the same rows, steps and rates; results differ by rounding, and by what is drawn at random
    CHANGED = "changed"  #: it computes or trains something else from here on


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was when the checkpoint was saved."""

    fidelity: Fidelity  #: the best that is left with it
    text: str


def list_inexactness(args: Any) -> list[str]:
    """Return, in words, why an interrupted run with these options is not bit for bit the uninterrupted one."""
    reasons = []
    if getattr(args, "use_vllm", False):
        reasons.append("options.use_vllm: the state of vLLM's sampling is part of no checkpoint")
    if args.dataloader_num_workers > 1 and not args.dataloader_in_order:
        reasons.append("options.dataloader_in_order: false trains rows in the order in which workers have read them")
    return reasons


def read_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what training computes, and of Relay."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def read_conditions(trainer: Any) -> dict[str, str]:
    """Return what this attempt trains with."""
    cuda = trainer.args.device.type == "cuda"
    dtypes = {str(each.dtype).removeprefix("torch.") for each in trainer.model.parameters()}
    return read_versions() | {
        _DEVICE: torch.cuda.get_device_name(trainer.args.device) if cuda else "CPU",
        _PRECISION: str(trainer.accelerator.mixed_precision).replace("no", "full"),
        _WEIGHTS: " and ".join(sorted(dtypes)),
        _TF32: read_tf32(),
        _ATTENTION: str(getattr(trainer.model.config, "_attn_implementation", None)),
    }


def read_tf32() -> str:
    """Return `on` where GPUs multiply matrices in TF32 instead of float32, else `off`. (Reading torch's older
    `allow_tf32` raises once transformers has set the newer one.)
    """
    backends: Any = torch.backends
    own = backends.cuda.matmul.fp32_precision
    return "on" if (backends.fp32_precision if own == "none" else own) == "tf32" else "off"


def compare_conditions(before: Conditions | None, now: Conditions) -> Iterator[Difference]:
    """Yield what has changed. An older release recorded nothing."""
    if before is None:
        unknown = "libraries, GPU, precision and attention were not recorded with the checkpoint"
        yield Difference(Fidelity.CLOSE, unknown)
        return
    for name, value in now.items():
        if before.get(name) not in (None, value):
            changed = name in (_PRECISION, _WEIGHTS)
            yield Difference(
                Fidelity.CHANGED if changed else Fidelity.CLOSE, f"{name} was {before[name]} and is {value}"
            )


def judge_fidelity(differences: Iterable[Difference]) -> Fidelity:
    """Return how an attempt with these differences goes on."""
    ranked: Sequence[Fidelity] = list(Fidelity)
    return max((each.fidelity for each in differences), key=ranked.index, default=Fidelity.EXACT)

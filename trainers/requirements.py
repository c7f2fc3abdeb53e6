"""What a run requires of its host, checked before anything is loaded. Another host may have what this one lacks.

The precision is resolved here too: it fits the host that the run begins on, and is required of all later ones.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

import torch

from runfile import RunFile
from trainers.errors import HostError

#: The extra of Relay that brings a package to a host.
EXTRAS: Mapping[str, str] = {
    "bitsandbytes": "quantization",
    "deepspeed": "deepspeed",
    "flash_attn": "flash-attention",
    "kernels": "kernels",
    "liger_kernel": "liger",
    "vllm": "vllm",
}
PRECISION = "precision"  #: the name of the pin of the type that a run computes in
BFLOAT16, FLOAT32 = "bfloat16", "float32"


def require_host(run: RunFile, processes: int, pins: Mapping[str, str] = {}) -> None:
    """Raise HostError with everything that this host lacks."""
    if lacks := list(_missing(run, processes, pins)):
        raise HostError("; ".join(lacks))


def resolve_precision(run: RunFile, pins: Mapping[str, str]) -> str | None:
    """Return the type that a run computes in where its options leave that open, else None: the pinned one, or the one
    that fits this host, bfloat16 on GPUs that have it and float32 elsewhere. A GPU without it emulates it slowly.
    """
    if {"bf16", "fp16"} & set(run.options):
        return None
    return pins.get(PRECISION) or (BFLOAT16 if _has_bfloat16() else FLOAT32)


def _has_bfloat16() -> bool:
    """Return True when this host's GPU computes in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _missing(run: RunFile, processes: int, pins: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each requirement that this host does not meet."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if run.resources.require_cuda and found < processes:
        yield (
            f"this host must have {processes} CUDA GPUs, and torch finds {found} "
            "(resources.require_cuda: false trains on CPUs)"
        )
    for asked, what, packages, gpu in _REQUIREMENTS:
        if not asked(run):
            continue
        if gpu and not found:
            yield f"{what} needs a CUDA GPU, and torch finds none"
        for name in packages:
            if find_spec(name) is None:
                yield f"{what} needs the package {name} (pip install 'relay-training[{EXTRAS[name]}]')"
    if found and not _has_bfloat16():
        if run.options.get("bf16"):
            yield f"options.bf16: {torch.cuda.get_device_name()} has no bfloat16 (use fp16: true)"
        elif resolve_precision(run, pins) == BFLOAT16:
            yield f"this run began in bfloat16, which {torch.cuda.get_device_name()} has not"


def _attention_implementation(run: RunFile) -> str:
    """Return the attention implementation that the run asks for, or an empty text."""
    return str(run.model_init.get("attn_implementation", ""))


#: A test whether the run asks for a feature, its name, the packages it needs, and whether it needs a GPU.
_REQUIREMENTS: tuple[tuple[Callable[[RunFile], object], str, tuple[str, ...], bool], ...] = (
    (
        lambda run: _attention_implementation(run) in ("flash_attention_2", "flash_attention_3"),
        "model_init.attn_implementation: flash attention",
        ("flash_attn",),
        True,
    ),
    (
        lambda run: "/" in _attention_implementation(run),
        "model_init.attn_implementation: a kernel of the Hub",
        ("kernels",),
        True,
    ),
    (lambda run: run.model_init.get("use_kernels"), "model_init.use_kernels", ("kernels",), True),
    (lambda run: run.options.get("use_liger_kernel"), "options.use_liger_kernel", ("liger_kernel",), True),
    (lambda run: run.quantization, "quantization", ("bitsandbytes",), True),
    (lambda run: "bnb" in str(run.options.get("optim")), "options.optim", ("bitsandbytes",), True),
    (lambda run: run.options.get("activation_offloading"), "options.activation_offloading", (), True),
    (lambda run: run.options.get("use_vllm"), "options.use_vllm", ("vllm",), True),
    # On CPUs accelerate silently uses DDP instead.
    (lambda run: "fsdp_config" in run.launch, "launch.fsdp_config", (), True),
    (lambda run: "deepspeed_config" in run.launch, "launch.deepspeed_config", ("deepspeed",), True),
    (lambda run: "parallelism_config" in run.launch, "launch.parallelism_config", (), True),
)

"""Weights that are spread over the ranks (FSDP, DeepSpeed ZeRO-3), gathered so that one process can load them.

The frameworks save shards, from which only the same framework resumes. What a run publishes must be loadable without
it: by the libraries, by a run that begins with it, by a merge. So the result and every checkpoint hold the full weights
as well, beside the shards.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig

from trainers.errors import ConfigError

#: Modules that frameworks put between others, by the name that they have there.
_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
_GATHER = "stage3_gather_16bit_weights_on_model_save"  #: DeepSpeed's name of what gathers the weights of ZeRO-3
_FSDP = "fsdp_config"
#: What a checkpoint holds of each framework's shards, by the section of the run file's `launch` that asks for it.
_SHARDS = {_FSDP: "pytorch_model_fsdp*", "deepspeed_config": "global_step*"}


def name_framework(launch: Mapping[str, Any]) -> str:
    """Return what a run file's `launch` shards the model with, or an empty text when every rank has all of it. With
    another framework, or shards of another kind, a checkpoint cannot be resumed.
    """
    if (fsdp := launch.get("fsdp_config")) is not None:
        version = int(fsdp.get("fsdp_version", 1))  # accelerate's defaults
        kind = fsdp.get("fsdp_state_dict_type") or ("SHARDED_STATE_DICT" if version == 2 else "FULL_STATE_DICT")
        return f"FSDP{version} {kind}"
    if (deepspeed := launch.get("deepspeed_config")) is not None:
        file = deepspeed.get("deepspeed_config_file")
        return f"DeepSpeed as in {file}" if file else f"DeepSpeed ZeRO-{deepspeed.get('zero_stage', 2)}"
    return ""


def list_bound_sections(launch: Mapping[str, Any]) -> list[str]:
    """Return the sections of a run file's `launch` with which only as many processes resume as have saved a checkpoint.
    FSDP distributes full states, and cuts shards, anew for any number.
    """
    alone = "parallelism_config" not in launch
    return [name for name in (*_SHARDS, "parallelism_config") if name in launch and not (alone and name == _FSDP)]


def require_shards(checkpoint: Path, launch: Mapping[str, Any]) -> None:
    """Raise ConfigError when the run's framework does not find its shards in the checkpoint, or finds those of another
    one.
    """
    for section, pattern in _SHARDS.items():
        held, used = any(checkpoint.glob(pattern)), section in launch
        if held != used:
            wrong = f"was saved with launch.{section}" if held else f"holds nothing of launch.{section}"
            raise ConfigError(
                f"{checkpoint.name} {wrong}, and the run {'has none' if held else 'asks for it'}: resume with the same "
                "launch, or begin a new run from its weights (model.init_from)"
            )


def gather_weights(model: Any, base: Path) -> dict[str, Any]:
    """Return the full weights of a model that FSDP has sharded, on the CPU of the first rank, and nothing in the
    others. Every rank calls it. `base` is the folder of the model before training.

    Of a model with an adapter FSDP2 gathers only what is trained: the frozen base may be large, and is saved nowhere.
    FSDP1 cannot leave it out.
    """
    adapter = _find_adapter(model)
    trained = isinstance(model, FSDPModule) and adapter is not None and not _saves_embeddings(adapter, base)
    how = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained)
    return get_model_state_dict(model, options=how)


@contextmanager
def plain_module_names(model: Any) -> Iterator[None]:
    """Have a model with an adapter name its modules as if no framework had wrapped them.

    PEFT finds an adapter's weights by the names of its modules, and the weights have plain names. Where FSDP, torch's
    recomputation or its compiler have wrapped a module, PEFT would silently save and load an adapter without them.
    """
    adapter = _find_adapter(model)
    if adapter is None:
        yield
        return
    named_modules = adapter.named_modules

    def name_plainly(*args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, module in named_modules(*args, **kwargs):
            yield ".".join(part for part in name.split(".") if part not in _WRAPPERS), module

    adapter.named_modules = name_plainly
    try:
        yield
    finally:
        del adapter.named_modules


def _find_adapter(model: Any) -> Any:
    """Return the model as PEFT made it, or None for one without an adapter."""
    return next((module for module in model.modules() if isinstance(module, PeftModel)), None)


def _saves_embeddings(model: Any, base: Path) -> bool:
    """Return True when PEFT saves the frozen embeddings with the adapter: one of them is adapted, or has other rows
    than the base model's.
    """
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return True
    return bool(AutoConfig.from_pretrained(base).vocab_size != model.config.vocab_size)


def require_gathering(accelerator: Any) -> None:
    """Refuse ZeRO-3 that would save shards only, from which no library loads the model, by raising ConfigError."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    zero = plugin.deepspeed_config.get("zero_optimization", {}) if plugin is not None else {}
    if zero.get("stage") == 3 and zero.get(_GATHER) is not True:
        raise ConfigError(
            f"launch.deepspeed_config: ZeRO-3 would save no weights that can be loaded; set zero3_save_16bit_model: "
            f"true, or zero_optimization.{_GATHER} in its file"
        )

"""The fingerprint of what a run trains. A checkpoint is resumed only by a run with the same fingerprint.

Resumed with another batch size, other rows or another learning rate, the libraries train on without an error: they skip
the wrong rows, and keep the old learning rate.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runfile import Reward, RunFile
from trainers.errors import ConfigError
from trainers.models.hub import ModelSource
from trainers.sharding import name_framework

Fingerprint = Mapping[str, Any]

#: Options that may change during a run: how long to train, what is logged and evaluated, how the machine is used.
_MAY_CHANGE = re.compile(
    r"max_steps|num_train_epochs|(log|logging|eval)_\w+|per_device_eval_batch_size|gradient_checkpointing\w*"
    r"|dataloader_(num_workers|prefetch_factor|persistent_workers|pin_memory)|dataset_num_proc|include_\w+|ddp_\w+"
)

#: Options that `trainers.batches` compares: together with the number of processes they say how a step is split.
SPLIT_OPTIONS = ("per_device_train_batch_size", "gradient_accumulation_steps")

CONTENTS = "contents of "  #: begins the names of digests of what lies on a host's disk: local models, rewards' code


def fingerprint_of(run: RunFile, model: ModelSource, rows: str, teacher: ModelSource | None = None) -> Fingerprint:
    """Return the fingerprint of a run that trains `model` on rows with this digest, as plain JSON values."""
    options = {name: value for name, value in run.options.items() if not _MAY_CHANGE.fullmatch(name)}
    sections = {
        "model_init": run.model_init,
        "lora": run.lora or {},
        "quantization": run.quantization or {},
        "options": options,
    }
    return {
        "method": run.method,
        "model": model.origin or _model_name(model),
        **({"teacher": _model_name(teacher)} if teacher else {}),
        "full training": run.lora is None,
        "seed": run.seed,
        "rows": rows,
        **({"data.streaming": True} if run.data is not None and run.data.streaming else {}),  # another order
        **({"rewards": [_reward_settings(reward) for reward in run.rewards]} if run.rewards else {}),
        **({"launch": framework} if (framework := name_framework(run.launch)) else {}),
        **{f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()},
    }


def _model_name(model: ModelSource) -> str:
    """Return the model's name and commit, or the name of its folder."""
    return f"{model.path}@{model.revision}" if model.revision else Path(model.path).name


def _reward_settings(reward: Reward) -> dict[str, Any]:
    """Return the settings that decide a reward's value. Its time limit does not."""
    deciding = {"name", "call", "model", "weight", "config"}
    return reward.model_dump(mode="json", include=deciding, exclude_defaults=True)


def require_same_run(checkpoint: Path, before: Fingerprint, now: Fingerprint) -> None:
    """Raise ConfigError when another run, or this run with other options, saved `checkpoint`. The message names what
    differs.
    """
    if differences := list(_list_differences(before, now)):
        raise ConfigError(
            f"{checkpoint.name} was saved by a run that trained something else: {', '.join(differences)}; "
            "what has changed must be trained as a new run, under another name"
        )


def require_same_weights(checkpoint: Path, run: RunFile) -> None:
    """Raise ConfigError when another trainer saved an adapter and this run trains all weights, or the other
    way round.
    """
    adapter = (checkpoint / "adapter_config.json").is_file()
    if adapter == (run.lora is not None):
        return
    held, trained = ("an adapter", "all weights") if adapter else ("all weights", "an adapter")
    do = "add lora to" if adapter else "take lora out of"
    raise ConfigError(f"{checkpoint.name} holds {held}, and the run trains {trained}; {do} the run file")


def list_unrecorded(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Return whose contents an older release did not record, so that they cannot be compared."""
    return [name.removeprefix(CONTENTS) for name in now if name.startswith(CONTENTS) and name not in before]


def _list_differences(before: Fingerprint, now: Fingerprint) -> Iterator[str]:
    """Yield each difference between two fingerprints in words. What lies on a host's disk is compared by its contents,
    where both have them, and not by its name.
    """
    known = {name for name in before if name.startswith(CONTENTS) and name in now}
    yield from (f"the {name} have changed" for name in known if before[name] != now[name])
    for name in {**before, **now}:
        if name.startswith(CONTENTS) or CONTENTS + name in known or name.removeprefix("options.") in SPLIT_OPTIONS:
            continue
        if name == "rewards":
            before, now = (
                {**each, name: [_without_folder(reward) for reward in each.get(name, ())]} for each in (before, now)
            )
        if before.get(name) != now.get(name):
            changed = (
                "have changed"
                if name == "rows"
                else f"was {_format_value(before, name)} and is {_format_value(now, name)}"
            )
            yield f"{name} {changed}"


def _without_folder(reward: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reward's settings with its file named without the folder."""
    return {**reward, **({"call": str(reward["call"]).rpartition("/")[2]} if reward.get("call") else {})}


def _format_value(identity: Fingerprint, name: str) -> str:
    """Return one value of a fingerprint as JSON, or "not given"."""
    return json.dumps(identity[name]) if name in identity else "not given"

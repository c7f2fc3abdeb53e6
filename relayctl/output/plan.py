"""What a run puts on the Hugging Face Hub, and how much that is, for its plan. Pure."""

from __future__ import annotations

import re

from relayctl.output.format import size, span
from runfile import HubSection, RunFile, format_duration

DAY = 86400.0
_BILLIONS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z0-9])", re.IGNORECASE)
_HALF = ("bfloat16", "float16", "bf16", "fp16")
_STATES = 3  #: weights and Adam's two moments


def hub_words(run: RunFile, weights: int | None) -> str:
    """Where to, how often, and what it costs. `weights` is the size of a local model's, where it is one."""
    hub = run.hub
    if hub is None:
        return ""
    if hub.dry_run:
        return f"{hub.repo}, only rehearsed"
    words = (
        f"{hub.repo}, the newest model every {_often(hub)}, {'private' if hub.private else 'public'} where it is new"
    )
    return f"{words}; {_state_words(run, weights)}" if hub.state else words


def _often(hub: HubSection) -> str:
    seconds = hub.every.seconds
    if seconds is None:
        return str(hub.every)
    return span(seconds) if seconds >= 60 and seconds % 60 == 0 else format_duration(seconds)


def _state_words(run: RunFile, weights: int | None) -> str:
    save = state_size(run, weights)
    if save is None:
        return "the whole state of each checkpoint, whose size the run says before it sends the first"
    every = run.checkpoint.every.seconds
    day = f", {size(int(save * DAY / every))} a day" if every else ""
    return f"the whole state of each checkpoint: about {size(save)} a save{day}"


def state_size(run: RunFile, weights: int | None) -> int | None:
    """Bytes of a trainer's state when all weights are trained; None where that cannot be told beforehand."""
    if run.model is None or run.lora is not None:
        return None
    if weights is not None:
        return weights * _STATES
    name = (run.model.name_or_path or "").rpartition("/")[2]
    found = _BILLIONS.search(name.replace("-", " ").replace("_", " "))
    if found is None:
        return None
    parameters = float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6)
    return int(parameters * (2 if run.model_init.get("dtype") in _HALF else 4) * _STATES)

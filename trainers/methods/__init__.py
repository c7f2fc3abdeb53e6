"""The training methods: each is a small module whose `METHOD` names its library trainer and what that trainer needs."""

import importlib
import os
from typing import TYPE_CHECKING, cast

from trainers.errors import ConfigError

if TYPE_CHECKING:
    from trainers.methods.method import Method

NAMES = ("sft", "cpt", "dpo", "orpo", "cpo", "kto", "reward", "grpo", "rloo", "ppo", "gkd", "distillation")

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # docs/runfile.md says which these are, once


def load_method(name: str) -> "Method":
    """Return the method of that name. Raises ConfigError, which lists the methods, when there is none."""
    if name not in NAMES:
        raise ConfigError(f"method: {name} cannot be trained here; the methods are {', '.join(NAMES)}")
    return cast("Method", importlib.import_module(f"trainers.methods.{name}").METHOD)

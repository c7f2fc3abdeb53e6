"""The training methods: each a small module that turns a run file into a library trainer.

A method module has `config_class`, `configure` and `build` (see `Method`); everything else is shared.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any, Protocol, cast

from trainers.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from relay.runfile import RunFile
    from trainers.data import Rows
    from trainers.hub import LocalModel
    from trainers.resumable import Resumable

NAMES = ("sft", "cpt", "dpo", "orpo", "cpo", "kto", "reward")

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # docs/runfile.md says which these are, once


class Method(Protocol):
    """What a method's module defines."""

    #: The kinds of rows it learns from (see `trainers.rows`).
    KINDS: tuple[str, ...]
    #: What the model is trained to give (see `trainers.beginning`).
    TASK: str

    def config_class(self) -> type[Any]:
        """The library's config class; its fields are the method's options."""

    def configure(self, run: "RunFile", owned: dict[str, Any]) -> "TrainingArguments":
        """The library's config from the run's options and those Relay sets; the library's own errors pass through."""

    def build(
        self, run: "RunFile", args: Any, model: "LocalModel", train: "Rows", held_out: "Rows | None"
    ) -> "Resumable":
        """The library's trainer with its model loaded, able to resume (see `trainers.resumable`)."""


def load(name: str) -> Method:
    """The method's module; ConfigError names those there are."""
    if name not in NAMES:
        raise ConfigError(f"method: {name} cannot be trained here; there is {', '.join(NAMES)}")
    return cast("Method", importlib.import_module(f"trainers.methods.{name}"))

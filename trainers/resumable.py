"""The library trainer, taught to save and resume Relay's way. Every method's trainer inherits from it first."""

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import Trainer

from trainers.checkpoints import SavedCheckpoint, metric_windows
from trainers.models.hub import LocalModel
from trainers.rollout import Rollout

_REFERENCE = "ref"  #: TRL's name of the adapter that it compares with


class EvaluationPostponed(Exception):
    """A stop was asked for in the middle of an evaluation; the next attempt does it."""


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints are written by `save_hook` and whose logs survive a NaN."""

    save_hook: Callable[[], None]
    base_model: LocalModel  #: what the model was before training
    evaluation_due = False  #: of the step last done; a stop put it off
    shared_state: tuple[str, ...] = ()  #: what of `extra_state` is the same in every rank
    loss_is_likelihood = False  #: the loss is a mean over tokens of -log(p), and exp(loss) a perplexity

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """In place of the library's own, which writes into the final folder, without fsync, and rotates."""
        self.save_hook()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the library does; but an adapter names its base as others can find it, not by a folder of this host. The
        one that it is compared with is not saved: every attempt copies it from what the run began with.
        """
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            folder = Path(output_dir or str(self.args.output_dir))
            if (folder / _REFERENCE / "adapter_config.json").is_file():
                shutil.rmtree(folder / _REFERENCE)
            name_base_model(folder, self.base_model)

    def collect_extra_state(self) -> dict[str, Any]:
        """What this rank needs to go on exactly, beyond what the library saves of it: tensors, numbers, text, None, and
        lists and mappings of those.
        """
        return {}

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        """`extra_state` of the checkpoint that is gone on from; empty when it has none for this rank, and only what is
        `alike` when it was saved by another number of processes. Called when training begins.
        """

    @classmethod
    def describe_missing_state(cls, checkpoint: SavedCheckpoint) -> str:
        """What a checkpoint of another trainer lacks, in words; nothing where it lacks nothing."""
        return "it has no optimizer, which begins anew" if checkpoint.lacks_optimizer else ""

    def newest_rollouts(self) -> Sequence[Rollout]:
        """The newest completions of its own that it trained on, where it does such."""
        return ()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Resumed from the last step there is nothing to do; the library would train one step more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """An evaluation that is put off half way leaves nothing behind: the state saved is the one before it."""
        before = capture_random_states() if self.control.should_evaluate else None
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationPostponed:
            assert before is not None
            restore_random_states(before)
            metric_windows(self).get("eval", {}).clear()
            self.evaluation_due = self.control.should_training_stop = True
            self.save_hook()

    def evaluate_if_due(self) -> None:
        """The evaluation that a stop put off, as the library would have done it after that step."""
        if self.evaluation_due:
            self.evaluation_due = False
            self._evaluate(None, None)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """A NaN is logged once and not for ever: the library empties its sum by subtracting it from itself."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self._tr_loss.zero_()
        super().log(logs, *args, **kwargs)


def name_base_model(folder: Path, base: LocalModel) -> None:
    """Let the adapter saved in `folder` (if it is one) refer to its base by name, and commit where it has one."""
    config, card = folder / "adapter_config.json", folder / "README.md"
    if config.is_file():
        known = {"base_model_name_or_path": base.source.name, "revision": base.source.revision}
        config.write_text(json.dumps(json.loads(config.read_text()) | known, indent=2, sort_keys=True))
        if card.is_file():
            card.write_text(card.read_text().replace(str(base.folder), base.source.name))


def capture_random_states() -> tuple[Any, ...]:
    """Of all generators that training draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda


def restore_random_states(states: tuple[Any, ...]) -> None:
    """Draw again what was drawn since `random_states`."""
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])

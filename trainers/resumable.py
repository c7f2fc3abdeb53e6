"""The library trainer, extended to save and resume Relay's way. Every method's trainer inherits from it first."""

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

_REFERENCE = "ref"  #: TRL's name of the adapter that is the reference


class EvaluationPostponed(Exception):
    """A stop was requested during an evaluation, which the next attempt carries out."""


class ResumableTrainer(Trainer):
    """A library trainer whose checkpoints are written by `save_hook` and whose logs survive a NaN."""

    save_hook: Callable[[], None]
    base_model: LocalModel  #: the model before training
    evaluation_due = False  #: an evaluation of the last step is postponed
    shared_state: tuple[str, ...] = ()  #: names in the extra state whose values are the same in every rank
    loss_is_likelihood = False  #: the loss is a mean over tokens of -log(p), and exp(loss) a perplexity

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save by `save_hook`. The library itself would write into the final folder, without fsync, and delete old
        folders.
        """
        self.save_hook()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as the library does, with two changes: an adapter names its base model as others can find it (not by a
        folder of this host), and the adapter that DPO and KTO compare with is removed, since every attempt copies it
        from the initial weights.
        """
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            folder = Path(output_dir or str(self.args.output_dir))
            if (folder / _REFERENCE / "adapter_config.json").is_file():
                shutil.rmtree(folder / _REFERENCE)
            name_base_model(folder, self.base_model)

    def collect_extra_state(self) -> dict[str, Any]:
        """Return what this rank needs to resume exactly beyond what the library saves: tensors, numbers, text, None,
        and lists and mappings of those.
        """
        return {}

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the extra state of the checkpoint that is resumed from. Called when training begins.

        It is empty when the checkpoint has none for this rank, and holds only what `shared_state` names when another
        number of processes saved it.
        """

    @classmethod
    def describe_missing_state(cls, checkpoint: SavedCheckpoint) -> str:
        """Return in words what a checkpoint of another trainer lacks and therefore starts anew; empty where it lacks
        nothing.
        """
        return "it has no optimizer, which begins anew" if checkpoint.lacks_optimizer else ""

    def newest_rollouts(self) -> Sequence[Rollout]:
        """Return the newest completions that the trainer generated and trained on; empty for methods that generate
        none.
        """
        return ()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing when resumed from the last step, where the library would train one step more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, save and evaluate. A postponed evaluation leaves no trace: the state that is saved is the one
        before it.
        """
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
        """Run the evaluation that a stop postponed, as the library would have run it after that step."""
        if self.evaluation_due:
            self.evaluation_due = False
            self._evaluate(None, None)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a NaN once and not forever: the library resets its sum by subtracting the sum from itself."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self._tr_loss.zero_()
        super().log(logs, *args, **kwargs)


def name_base_model(folder: Path, base: LocalModel) -> None:
    """Make the adapter saved in `folder` (if it is one) refer to its base by name, and by commit where it has one."""
    config, card = folder / "adapter_config.json", folder / "README.md"
    if config.is_file():
        known = {"base_model_name_or_path": base.source.name, "revision": base.source.revision}
        config.write_text(json.dumps(json.loads(config.read_text()) | known, indent=2, sort_keys=True))
        if card.is_file():
            card.write_text(card.read_text().replace(str(base.folder), base.source.name))


def capture_random_states() -> tuple[Any, ...]:
    """Return the states of all random generators that training draws from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda


def restore_random_states(states: tuple[Any, ...]) -> None:
    """Restore the states, so that what was drawn since `capture_random_states` is drawn again."""
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])

"""Watches for NaN and infinity: in the loss, in the gradient norm of applied steps, and at saves in the weights.

Weights that are not finite are never saved, so no checkpoint that is good makes way for one, and no result holds them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.errors import NotFiniteError
from trainers.events import EventLog
from trainers.resumable import ResumableTrainer

_CURE = (
    "the same would happen again, so it is not retried; lower options.learning_rate or options.max_grad_norm, look at "
    "the rows of that step, or set lifecycle.on_nan: continue"
)


class FinitenessWatch(TrainerCallback):
    """Ends the training at what is not finite, by NotFiniteError; with `continue` only where the last weights are."""

    def __init__(self, trainer: ResumableTrainer, on_nan: Literal["stop", "continue"], events: EventLog) -> None:
        self._trainer, self._stops, self._events = trainer, on_nan == "stop", events
        self._finite: torch.Tensor | None = None  #: whether the loss was finite at the end of the step before
        self._warned = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the loss of the step before, which a GPU has computed by now: nothing waits for it."""
        before, self._finite = self._finite, torch.isfinite(self._trainer._tr_loss)
        if before is not None and not bool(before):
            self._stop_at(f"the loss at step {state.global_step - 1}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        numbers = logs or {}
        if not math.isfinite(numbers.get("loss", 0.0)):
            self._stop_at(f"the loss at step {state.global_step}")
        skipped = self._trainer.accelerator.optimizer_step_was_skipped  # by float16's scaler, which lowers its scale
        if not skipped and not math.isfinite(numbers.get("grad_norm", 0.0)):
            self._stop_at(f"the gradient norm at step {state.global_step}")

    def allows_save(self) -> bool:
        """Return True when all weights are finite, in every rank. Every rank calls it.

        Raises NotFiniteError where they are not and the training is to stop, or is at its end.
        """
        state, model = self._trainer.state, self._trainer.model
        assert model is not None
        bad = any(_holds_nan(each) for each in model.parameters() if each.requires_grad)
        flags: Any = self._trainer.accelerator.gather(torch.tensor([bad], device=self._trainer.args.device))
        if not bool(flags.any()):
            return True
        what = f"weights at step {state.global_step}"
        self._stop_at(what)
        if state.global_step >= state.max_steps:
            raise NotFiniteError(f"not finite: {what}, the last one, so there is no result")
        if not self._warned:
            self._events.log_message("warning", f"not finite: {what}; no checkpoint is saved while they are not")
        self._warned = True
        return False

    def _stop_at(self, what: str) -> None:
        """End the training, unless it is to continue."""
        if self._stops:
            raise NotFiniteError(f"not finite: {what}; {_CURE}")


@contextmanager
def errors_attributed_to_weights(trainer: ResumableTrainer) -> Iterator[None]:
    """Turn an error that weights which are not finite have caused into NotFiniteError: nothing can be sampled from
    them, for instance.
    """
    try:
        yield
    except RuntimeError as error:
        model = trainer.model
        with suppress(RuntimeError):  # a GPU that has failed computes nothing more
            if model is not None and any(map(_holds_nan, model.parameters())):
                step = trainer.state.global_step
                raise NotFiniteError(f"not finite: weights at step {step}; {_CURE}") from error
        raise


def _holds_nan(weights: Any) -> bool:
    """Return True when weights, or this rank's part of them, hold what is not finite."""
    local = weights.to_local() if hasattr(weights, "to_local") else weights
    return not bool(torch.isfinite(local).all())

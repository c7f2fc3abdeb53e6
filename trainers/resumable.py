"""The library trainer, taught to save and resume Relay's way. Every method's trainer inherits from it first."""

import math
from collections.abc import Callable
from typing import Any

from transformers import Trainer


class Resumable(Trainer):
    """A Trainer whose checkpoints are written by `save_hook` and whose logs survive a NaN."""

    save_hook: Callable[[], None]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """In place of the library's own, which writes into the final folder, without fsync, and rotates."""
        self.save_hook()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Resumed from the last step there is nothing to do; the library would train one step more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """A NaN is logged once and not for ever: the library empties its sum by subtracting it from itself."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self._tr_loss.zero_()
        super().log(logs, *args, **kwargs)

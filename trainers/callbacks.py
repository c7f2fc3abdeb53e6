"""What happens at the end of a step: whether to save, and whether to stop. All ranks decide alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runfile import Every
from trainers.launch.control import ControlFolder
from trainers.resumable import EvaluationPostponed, ResumableTrainer

AgreeOnFlags = Callable[[bool, bool], tuple[bool, bool]]  #: the flags (stop, save) of this rank → of any rank


def build_agreement(processes: int) -> AgreeOnFlags:
    """Return a function that turns the flags of each rank into flags of all: if one rank alone acted, the others would
    wait forever.

    The flags are exchanged over gloo, on the CPU, so no rank waits for its GPU to learn that nothing happened.
    """
    if processes == 1:
        return lambda stop, save: (stop, save)
    import torch
    import torch.distributed as dist

    group = dist.new_group(backend="gloo")

    def agree(stop: bool, save: bool) -> tuple[bool, bool]:
        flags = torch.tensor([stop, save], dtype=torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=group)
        return bool(flags[0]), bool(flags[1])

    return agree


@dataclass(slots=True)
class CheckpointInterval:
    """The run file's `checkpoint.every`: decides after each step whether a checkpoint is due."""

    every: Every
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def is_due(self, step: int) -> bool:
        """Return True when a checkpoint is due at the end of `step`."""
        if self.every.steps is not None:
            return step % self.every.steps == 0
        return self.clock() - self._saved_at >= (self.every.seconds or 0.0)

    def mark_saved(self) -> None:
        """Start the interval anew."""
        self._saved_at = self.clock()


class StepEndCallback(TrainerCallback):
    """Saves when the interval ends, at the last step and when a stop is requested; after a stop `stopped` is True.

    A save at the last step of an epoch (or of the run) waits for the end of the epoch, and an evaluation of that step
    with it, so that what the library logs there is part of the checkpoint and the evaluation comes after it: a resumed
    run starts with the next epoch and would never do it.

    Within an epoch, an evaluation that is due or running when the run stops is postponed. It would use up the time that
    is left to stop, and the next attempt can run it before its first step, from the same random state.
    """

    def __init__(
        self,
        trainer: ResumableTrainer,
        control: ControlFolder,
        pace: CheckpointInterval,
        agree: AgreeOnFlags,
        restore: Callable[[], None],
    ) -> None:
        self.stopped = False
        self._trainer, self._control, self._interval, self._agree, self._restore = (
            trainer,
            control,
            pace,
            agree,
            restore,
        )
        self._save_at_epoch_end = self._evaluate_at_epoch_end = False
        self._can_postpone = False  #: an evaluation that begins now may be postponed

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._restore()
        self._interval.mark_saved()
        self._control.mark_training_started()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._can_postpone = False
        self._trainer.evaluate_if_due()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        last = state.global_step >= state.max_steps
        save = state.is_world_process_zero and self._interval.is_due(state.global_step)
        stop, save = self._agree(self._control.stop_requested(), save)
        self.stopped = stop and not last
        control.should_training_stop |= stop
        if last or float(state.epoch or 0).is_integer():
            self._save_at_epoch_end = save or stop or last
            if self._save_at_epoch_end:
                self._evaluate_at_epoch_end, control.should_evaluate = control.should_evaluate, False
            return
        control.should_save = save or stop
        self._can_postpone = True
        if stop:
            self._trainer.evaluation_due, control.should_evaluate = control.should_evaluate, False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._can_postpone and self._agree(self._control.stop_requested(), False)[0]:
            self.stopped = True
            raise EvaluationPostponed

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._can_postpone = False
        if self._save_at_epoch_end:
            control.should_save, self._save_at_epoch_end = True, False
            control.should_evaluate |= self._evaluate_at_epoch_end
            self._evaluate_at_epoch_end = False
        elif self.stopped:  # stopped within an epoch: it has not ended, so nothing is logged or evaluated for its end
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._interval.mark_saved()

"""What happens between steps: when to save, and whether somebody asked to stop. All ranks decide alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runfile import Every
from trainers.launch.control import ControlFolder
from trainers.resumable import EvaluationPostponed, ResumableTrainer

AgreeOnFlags = Callable[[bool, bool], tuple[bool, bool]]  #: (stop, save) of this rank → of any rank


def build_agreement(processes: int) -> AgreeOnFlags:
    """Any rank's wish is the wish of all: a flag that one rank alone acts on leaves the others waiting for ever.

    The flags travel over gloo, on CPU: no rank waits for its GPU to hear that nothing happened.
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
    """`checkpoint.every` as a question that is asked after each step."""

    every: Every
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def is_due(self, step: int) -> bool:
        if self.every.steps is not None:
            return step % self.every.steps == 0
        return self.clock() - self._saved_at >= (self.every.seconds or 0.0)

    def mark_saved(self) -> None:
        self._saved_at = self.clock()


class StepEndCallback(TrainerCallback):
    """Saves at its pace, at the last step, and when asked to stop; then `stopped` is true.

    A save due at an epoch's last step (or the run's) waits for the end of the epoch, so that what the library logs
    and evaluates there is in the checkpoint: a resumed run begins with the next epoch and would never do it.

    Within an epoch an evaluation that is due where the run stops is put off, also when it has begun: it would eat the
    grace, and the next attempt can do it before its first step, from the same random state. (At an epoch's end it could
    not: by then the new epoch's order has been drawn.)
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
        self._save_at_epoch_end = False
        self._can_postpone = False  #: the evaluation that may begin now

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
        elif self.stopped:  # in the middle of an epoch: its end has not come, so nothing is logged or evaluated for it
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._interval.mark_saved()

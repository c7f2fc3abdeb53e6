"""Reporting what a trainer logs: as events, and as plain lines in the log."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runfile import metric_names
from trainers.events import EventLog

_LINE_METRICS = (
    *("train_loss", "eval_loss", "train_loss_mean"),
    *("reward", "eval_reward", "kl"),
    *("rewards/accuracies", "rewards/margins", "accuracy", "eval_rewards/accuracies", "eval_accuracy"),
    *("learning_rate", "grad_norm", "samples_per_second"),
)
#: Phases of a training (docs/events.md).
FIRST_STEP, SKIPPING, EVALUATING, TRAINING = "first_step", "skipping", "evaluating", "training"
_PHASE_SECONDS = 1.0  #: the least time between two reports of one phase
_PROGRESS_SECONDS = 1.0  #: the least time between two progress events


class EventReporter(TrainerCallback):
    """Writes everything that the trainer logs to the event file, and knows which of it is measured of a checkpoint.
    Only the main process has one.
    """

    def __init__(self, trainer: Trainer, events: EventLog, keep_metric: str | None = None) -> None:
        """`keep_metric` is the run file's `checkpoint.keep.metric`."""
        self._trainer, self._events = trainer, events
        self._labels = CheckpointLabels(keep_metric)
        self._loss_is_likelihood = getattr(trainer, "loss_is_likelihood", False)
        self._clock = StepClock()
        self._reported_at = 0.0
        self._tokens: float | None = None
        self._warned = self._warned_of_no_score = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._tokens = getattr(self._trainer, "_total_train_tokens", None)
        self._report_progress(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._clock.start_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._clock.end_step()
        if time.monotonic() - self._reported_at >= _PROGRESS_SECONDS or state.global_step >= state.max_steps:
            self._report_progress(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "train_runtime" in numbers and state.global_step < state.max_steps:
            return  # stopped before the end: the summary belongs to a finished run
        if "train_runtime" in numbers:
            values = self._summary_values(numbers, state)
        elif "loss" in numbers:
            values = self._training_values(numbers, args)
            self._warn_unless_finite(values["train_loss"], state.global_step)
            self._warn_unless_scored(values, state.global_step)
        else:
            values = {name: value for name, value in numbers.items() if name not in metric_names.EVALUATION_SPEEDS}
            if "eval_loss" in values and self._loss_is_likelihood:
                values["eval_perplexity"] = metric_names.perplexity(values["eval_loss"])
        self._events.log_metrics(state.global_step, values)
        self._warn(self._labels.add(state.global_step, values))
        tqdm.write(format_line(state.global_step, state.max_steps, values))  # above the progress bar, if there is one
        sys.stdout.flush()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._warn(self._labels.check_saved())

    def checkpoint_metrics(self, step: int) -> dict[str, float]:
        """Return what was measured at `step` and is stored with its checkpoint."""
        return self._labels.list_values(step)

    def _warn(self, text: str) -> None:
        """Write a warning, if there is a text."""
        if text:
            self._events.log_message("warning", text)

    def _training_values(self, numbers: Mapping[str, float], args: TrainingArguments) -> dict[str, float]:
        """Return a training log under Relay's names, with speeds and GPU readings."""
        values = {metric_names.TRAINING.get(name, name): value for name, value in numbers.items()}
        if self._loss_is_likelihood:
            values["perplexity"] = metric_names.perplexity(values["train_loss"])
        steps, seconds = self._clock.take_totals()
        if seconds > 0:
            values["samples_per_second"] = (
                steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size / seconds
            )
        if "num_tokens" in values and self._tokens is not None:
            if seconds > 0:
                values["tokens_per_second"] = (values["num_tokens"] - self._tokens) / seconds
            self._tokens = values["num_tokens"]
        return values | read_gpu(args.device)

    def _summary_values(self, numbers: Mapping[str, float], state: TrainerState) -> dict[str, float]:
        """Return the values of a finished run. The mean loss is over the steps of all attempts; the library's is over
        the last attempt only.
        """
        total: Any = self._trainer
        values = {
            "train_loss_mean": total._total_loss_scalar / max(state.global_step, 1),
            "total_flos": state.total_flos,
        }
        return values | {"train_runtime": numbers["train_runtime"], "epoch": numbers.get("epoch", 0.0)}

    def _report_progress(self, state: TrainerState) -> None:
        """Write a progress event."""
        self._reported_at = time.monotonic()
        self._events.log_progress(state.global_step, state.max_steps, float(state.epoch or 0))

    def _warn_unless_scored(self, values: Mapping[str, float], step: int) -> None:
        """Warn once when no reward has an opinion on any completion."""
        nothing = values.get(metric_names.UNSCORED) == 1.0
        if nothing and not self._warned_of_no_score:
            self._events.log_message(
                "warning",
                f"every reward was None for all completions up to step {step}: nothing was learnt",
            )
        self._warned_of_no_score = nothing

    def _warn_unless_finite(self, loss: float, step: int) -> None:
        """Warn once when the loss becomes NaN or infinite."""
        if not math.isfinite(loss) and not self._warned:
            self._events.log_message(
                "warning", f"the training loss is {'NaN' if math.isnan(loss) else 'infinite'} at step {step}"
            )
        self._warned = not math.isfinite(loss)


class ProgressBar(ProgressCallback):
    """The library's progress bar, without its log lines, which `EventReporter` prints."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Print nothing."""


class PhaseReporter(TrainerCallback):
    """Writes what the main process is busy with beside steps, so that its host does not take it for a stalled one."""

    def __init__(self, events: EventLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._events, self._clock = events, clock
        self._phase, self._total = TRAINING, None  # type: tuple[str, int | None]
        self._done: dict[str, int] = {}
        self._reported_at = 0.0

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Report a phase, and afterwards the one that it has interrupted."""
        interrupted = self._phase, self._total
        self._done[phase] = self._done.get(phase, 0) + 1
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(*interrupted)

    def _enter(self, phase: str, total: int | None = None) -> None:
        self._phase, self._total = phase, total
        self._reported_at = self._clock()
        self._events.log_phase(phase, self._done.get(phase, 0), total)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._enter(SKIPPING if state.global_step else FIRST_STEP)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._phase, self._total = TRAINING, None  # the step says it

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        batches: Any = more.get("eval_dataloader")
        first = self._phase != EVALUATING
        self._done[EVALUATING] = 1 if first else self._done[EVALUATING] + 1
        if first or self._clock() - self._reported_at >= _PHASE_SECONDS:
            self._enter(EVALUATING, len(batches) if hasattr(batches, "__len__") else None)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._phase == EVALUATING:
            self._enter(TRAINING)


class StepClock:
    """Measures the time spent in steps, without evaluations and saves."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._steps, self._seconds = 0, 0.0

    def start_step(self) -> None:
        """Note that a step begins."""
        self._began = time.monotonic()

    def end_step(self) -> None:
        """Count the step that has ended."""
        if self._began is not None:
            self._steps, self._seconds = self._steps + 1, self._seconds + time.monotonic() - self._began

    def take_totals(self) -> tuple[int, float]:
        """Return the number of steps and their seconds since the last call."""
        taken = self._steps, self._seconds
        self._steps, self._seconds = 0, 0.0
        return taken


class CheckpointLabels:
    """The values that belong to the weights of one step: losses, evaluation results, and what `checkpoint.keep`
    compares by. A checkpoint is labelled with those of its own step and of no other.
    """

    def __init__(self, keep_metric: str | None) -> None:
        self._metric = keep_metric or ""
        self._seen: set[str] = set()
        self._warned = not keep_metric
        self._step, self._values = -1, dict[str, float]()  #: the newest step that was logged, and its values

    def add(self, step: int, values: Mapping[str, float]) -> str:
        """Take values that were logged at a step; return a warning where an evaluation lacks `keep.metric`."""
        self._values = {**(self._values if step == self._step else {}), **values}
        self._step = step
        self._seen |= values.keys()
        results = [name for name in values if metric_names.is_evaluation_result(name)]
        expected = metric_names.is_evaluation_result(self._metric) and results
        return self._warn_of_absence("the evaluation", results) if expected else ""

    def check_saved(self) -> str:
        """Return a warning where a checkpoint was saved and nothing has reported `keep.metric` yet."""
        if metric_names.is_evaluation_result(self._metric):
            return ""  # an evaluation shows it
        return self._warn_of_absence("the training", sorted(self._seen))

    def list_values(self, step: int) -> dict[str, float]:
        """Return the values of a step that its checkpoint is labelled with."""
        values = self._values if step == self._step else {}
        kept = ("train_loss", self._metric)
        return {
            name: value for name, value in values.items() if name in kept or metric_names.is_evaluation_result(name)
        }

    def _warn_of_absence(self, what: str, names: Iterable[str]) -> str:
        """Return the warning, once, unless `keep.metric` was logged."""
        if self._warned or self._metric in self._seen:
            return ""
        self._warned = True
        return (
            f"checkpoint.keep.metric: {what} has not reported {self._metric}, so no checkpoint is kept as the best; it "
            f"reported {', '.join(names) or 'nothing'}"
        )


def read_gpu(device: torch.device) -> dict[str, float]:
    """Return memory (GB, 1e9 bytes) and utilization of this process's GPU; empty on a CPU."""
    if device.type != "cuda":
        return {}
    readings = {"gpu_memory_allocated_gb": torch.cuda.memory_allocated(device) / 1e9}
    with contextlib.suppress(ImportError, RuntimeError):  # this host has no NVML, or does not let it be read
        readings["gpu_utilization_percent"] = float(torch.cuda.utilization(device))
    return readings


def format_line(step: int, total: int, values: Mapping[str, float]) -> str:
    """Return one line of the log: `step 10/40  train_loss 2.31  learning_rate 0.0002 …`."""
    shown = [name for name in _LINE_METRICS if name in values]
    return "  ".join([f"step {step}/{total}", *(f"{name} {values[name]:.4g}" for name in shown)])

"""One attempt at a run, from the run file to the result: the stages that all methods share."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from jinja2 import TemplateError
from torch.utils.data import IterableDataset
from transformers import AutoTokenizer, PrinterCallback, TrainingArguments
from transformers.utils import logging

from runfile import DataSection, DataSource, Every, ModelSection, RunFile, Split
from trainers import checkpoints, data_report, fingerprint, methods, preflight, requirements, truncation
from trainers.callbacks import CheckpointInterval, StepEndCallback, build_agreement
from trainers.conditions import read_versions
from trainers.data import loading
from trainers.data.disk_rows import DiskRows
from trainers.environment import AttemptEnvironment
from trainers.errors import (
    COMPLAINTS,
    ConfigError,
    HostError,
    NotFiniteError,
    RewardError,
    errors_attributed_to,
    put_in_one_line,
)
from trainers.events import EventLog
from trainers.finiteness import FinitenessWatch, errors_attributed_to_weights
from trainers.launch.control import FAILED, REFUSED, STOPPED, SUCCEEDED, ControlFolder, Outcome
from trainers.methods.method import LearningSignals
from trainers.models import hub
from trainers.reporting import EventReporter, PhaseReporter, ProgressBar
from trainers.resumable import ResumableTrainer
from trainers.rewards import functions
from trainers.rewards.user_functions import digest_code
from trainers.samples import SampleCallback
from trainers.sharding import require_gathering
from trainers.starting_point import StartingPoint, build_restore, choose_start, require_same_world

_TOKENIZING_PROCESSES = 16  #: the most processes that tokenize rows on disk, where the options set no number
_EVALUATION_OPTIONS = ("eval_steps", "eval_strategy", "eval_on_start")


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A run as this process sees it."""

    run: RunFile
    environment: AttemptEnvironment
    control: ControlFolder
    processes: int  #: the number that the parent process asked the launcher for


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run whose options, rows and names have been checked."""

    args: TrainingArguments
    train: loading.Rows
    held_out: loading.Rows | None
    model: hub.ModelSource
    pins: Mapping[str, str]  #: names that this attempt was the first to resolve
    signals: LearningSignals

    @property
    def is_main(self) -> bool:
        """True in the process that reports and saves."""
        return bool(self.args.process_index == 0)


def train_run(job: TrainingJob, events: EventLog) -> Outcome:
    """Train to the end or until a stop is requested, in the named stages of one attempt.

    Raises ConfigError before the first step, CheckpointError, or any other error that ends the training.
    """
    logging.disable_progress_bar()
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-trainer-"))
        prepared = prepare_run(job, scratch)
        log = events if prepared.is_main else stack.enter_context(EventLog(Path("/dev/null")))
        _log_pins(prepared, log)
        _warn_about_rows(job, prepared, log)
        trained = fingerprint.fingerprint_of(job.run, prepared.model, prepared.train.digest, prepared.signals.teacher)
        trained = {**trained, **_digest_contents(job.run, prepared)}
        start = choose_start(job.run, prepared.args, trained, job.environment.resume_from, log)
        with _refused_rows_named(job, prepared):
            trainer = _build_trainer(job, prepared, log)
            start = start.settle(trainer, log)
            step_ends = _attach_callbacks(job, prepared, trainer, start, log)
            with errors_attributed_to_weights(trainer):
                _train(job, trainer, start)
        step, planned = trainer.state.global_step, trainer.state.max_steps
        if step_ends.stopped:
            return Outcome(STOPPED, f"stopped on request at step {step}; everything up to it is saved")
        if step < planned:
            raise ConfigError(
                f"data.train: training ended at step {step} of {planned}, since the rows gave no more batches"
            )
        with trainer.during("saving"):
            checkpoints.save_result(trainer, job.environment.output, _describe_result(job, prepared, trainer))
        return Outcome(SUCCEEDED)


def _train(job: TrainingJob, trainer: ResumableTrainer, start: StartingPoint) -> None:
    """Train to the end. Raises ConfigError where the library does not take the run's options, which it says before the
    first step of a run.
    """
    if start.checkpoint is not None:
        trainer.train(resume_from_checkpoint=str(start.checkpoint.folder))
        return
    try:
        trainer.train()
    except COMPLAINTS as error:
        if job.control.training_started():
            raise
        raise ConfigError(f"options: {put_in_one_line(error)}") from error


@contextmanager
def _refused_rows_named(job: TrainingJob, prepared: PreparedRun) -> Iterator[None]:
    """Raise ConfigError with file and line for a row that the chat template refuses."""
    try:
        yield
    except TemplateError as error:
        folder = prepared.model.adapter or hub.fetch_tokenizer(prepared.model)
        _require_rendered_rows(job, prepared, AutoTokenizer.from_pretrained(folder))
        raise ConfigError(f"data: the chat template refuses a row: {put_in_one_line(error)}") from error


def _require_rendered_rows(job: TrainingJob, prepared: PreparedRun, tokenizer: Any) -> None:
    """Raise ConfigError for the first row that the tokenizer's chat template refuses."""
    assert job.run.data is not None
    kinds, pins = methods.load_method(job.run.method).row_kinds, {**job.environment.pins, **prepared.pins}
    preflight.require_rendered_rows(
        {"data.train": prepared.train, "data.eval": prepared.held_out},
        tokenizer,
        partial(loading.locate_row, data=job.run.data, seed=job.run.seed, kinds=kinds, base=Path.cwd(), pins=pins),
    )


def check_run(job: TrainingJob) -> str:
    """Check options, data and model without training, and return lines for the user."""
    with tempfile.TemporaryDirectory(prefix="relay-trainer-") as scratch:
        prepared = prepare_run(job, scratch)
    held_out = f", {len(prepared.held_out)} held out" if prepared.held_out else ""
    at = f" at {prepared.model.revision}" if prepared.model.revision else ""
    folder = hub.fetch_tokenizer(prepared.model)
    if not isinstance(prepared.train.rows, DiskRows):  # of more rows, those that are looked at below
        _require_rendered_rows(job, prepared, AutoTokenizer.from_pretrained(folder))
    with _refused_rows_named(job, prepared), errors_attributed_to("data.train"):
        made = data_report.tokenize_rows(
            methods.load_method(job.run.method), prepared.train.rows, folder, job.run.options
        )
    return (
        f"{job.run.method} with {type(prepared.args).__name__}: the options are valid\n"
        f"data: {prepared.train.kind}, {len(prepared.train)} rows{held_out}\n"
        f"model: {prepared.model.path}{at}\n\n"
        f"{data_report.format_report(data_report.ExaminedRows(prepared.train.kind, prepared.train.rows), made)}"
    )


def prepare_run(job: TrainingJob, scratch: str) -> PreparedRun:
    """Check the run and resolve its names: first the library's options, then rows, then the model. The cheapest check
    is the first to refuse a run.
    """
    run, method = job.run, methods.load_method(job.run.method)
    rows, model = _require_data_and_model(run)
    pins = dict(job.environment.pins)
    requirements.require_host(run, job.processes, pins)
    with errors_attributed_to("options"), warnings.catch_warnings():
        # TRL's own default raises this one.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        try:
            args = method.configure(run, owned_options(run, scratch, pins))
        except ValueError as error:
            require_same_world(job.environment.resume_from, job.processes, str(error))
            raise
        preflight.require_optimizer(args)
    if job.processes != args.world_size:
        raise ConfigError(f"the launcher must start {job.processes} processes, and it started {args.world_size}")
    fresh = _resolve_pins(run, model, pins) if args.process_index == 0 else {}
    if args.world_size > 1:
        [fresh] = broadcast_object_list([fresh])
    pins |= fresh
    with args.main_process_first(local=True, desc="reading rows"):  # so that files are fetched once
        train_rows, held_out = loading.load_rows(
            rows, seed=run.seed, kinds=method.row_kinds, base=Path.cwd(), pins=pins
        )
    if not rows.streaming and isinstance(train_rows.rows, DiskRows) and getattr(args, "dataset_num_proc", 0) is None:
        args.dataset_num_proc = min(len(os.sched_getaffinity(0)), _TOKENIZING_PROCESSES)  # type: ignore[attr-defined]
    source = hub.resolve_model(model, pins)
    signals = LearningSignals(
        functions.resolve_rewards(run, train_rows.columns, pins) if method.uses_rewards else (),
        hub.resolve_teacher(run.teacher, pins) if run.teacher else None,
    )
    return PreparedRun(args, train_rows, held_out, source, fresh, signals)


def owned_options(run: RunFile, scratch: str, pins: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return the options that Relay sets itself (`trainers.schemas.OWNED` lists them), and defaults for this
    machine, or for the one that the run began on.
    """
    cuda = torch.cuda.is_available()
    owned: dict[str, Any] = {
        "output_dir": scratch,
        "seed": run.seed,
        "data_seed": None,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_nan_inf_filter": False,
        "use_cpu": not cuda,
    }
    if precision := requirements.resolve_precision(run, pins):
        owned["bf16"] = precision == requirements.BFLOAT16
    if not cuda:
        owned["dataloader_pin_memory"] = False
    return owned | _evaluation_options(run)


def _evaluation_options(run: RunFile) -> dict[str, Any]:
    """Return when held-out rows are evaluated: every `eval_steps` where that is given, else at the end of
    each epoch.
    """
    if run.data is not None and run.data.eval is not None:
        strategy = "steps" if "eval_steps" in run.options else "epoch"
        return {"eval_strategy": run.options.get("eval_strategy", strategy)}
    for name in _EVALUATION_OPTIONS:
        if run.options.get(name) not in (None, "no", False):
            raise ConfigError(
                f"options.{name}: there are no rows to evaluate on; add data.eval, for instance {{split: 0.02}}"
            )
    return {"eval_strategy": "no"}


def _require_data_and_model(run: RunFile) -> tuple[DataSection, ModelSection]:
    """Return the run's data and model. Raises ConfigError where one of them is not given."""
    if run.data is None or run.model is None:
        raise ConfigError(f"{'data' if run.data is None else 'model'}: is missing")
    return run.data, run.model


def _resolve_pins(run: RunFile, model: ModelSection, pins: Mapping[str, str]) -> dict[str, str]:
    """Return what is resolved for the first time: commits of models and data sets on the Hub, and the precision."""
    fresh: dict[str, str] = {}
    if precision := requirements.resolve_precision(run, pins):
        fresh[requirements.PRECISION] = precision
    if commit := hub.resolve_model(model, pins).revision:
        fresh["model"] = commit
    if run.teacher and (commit := hub.resolve_teacher(run.teacher, pins).revision):
        fresh["teacher"] = commit
    for reward in run.rewards:
        if reward.model is not None and (commit := hub.resolve_reward_model(reward.model, pins).revision):
            fresh[hub.reward_pin_name(reward.model)] = commit
    for source in _data_sources(run.data):
        if (source.path or "").startswith("hf://"):
            fresh[hub.dataset_pin_name(source)] = hub.resolve_dataset(source, pins)
    return {name: value for name, value in fresh.items() if name not in pins}


def _data_sources(rows: DataSection | None) -> Iterator[DataSource]:
    """Yield the sources of the rows to train on and of the held-out rows."""
    if rows is not None:
        yield from rows.train
        yield from () if rows.eval is None or isinstance(rows.eval, Split) else rows.eval


def _log_pins(prepared: PreparedRun, log: EventLog) -> None:
    """Log the names that this attempt resolved, which hold for all later attempts."""
    for name, value in prepared.pins.items():
        log.log_pin(name, value)


def _warn_about_rows(job: TrainingJob, prepared: PreparedRun, log: EventLog) -> None:
    """Warn about odd rows when a run begins; not about rows on disk, for which it would take minutes."""
    if job.environment.resume_from is not None or isinstance(prepared.train.rows, DiskRows):
        return
    repeated = any(source.weight > 1 for source in _data_sources(job.run.data))
    for oddity in data_report.find_oddities(prepared.train.rows, repeated=repeated):
        log.log_message("warning", f"data.train: {oddity}")


def _digest_contents(run: RunFile, prepared: PreparedRun) -> dict[str, str]:
    """Return the digests of what the run uses from this host's disk; the first process computes them for all."""
    found = {}
    if prepared.is_main:
        named = {"model": prepared.model, "teacher": prepared.signals.teacher}
        rated = zip(run.rewards, prepared.signals.rewards, strict=True) if run.rewards else ()
        for at, (written, reward) in enumerate(rated):
            if isinstance(reward, functions.RewardModel):
                named[f"rewards[{at}]"] = reward.source
            elif written.call is not None:
                found[f"{fingerprint.CONTENTS}rewards[{at}]"] = digest_code(written.call)
        models = {f"{fingerprint.CONTENTS}{name}": source for name, source in named.items() if source is not None}
        found |= {name: digest for name, source in models.items() if (digest := hub.digest_local_model(source))}
    if prepared.args.world_size > 1:
        [found] = broadcast_object_list([found])
    return found


def _build_trainer(job: TrainingJob, prepared: PreparedRun, log: EventLog) -> ResumableTrainer:
    """Fetch the model and build the library's trainer around it."""
    log.log_phase("loading")
    method, model = methods.load_method(job.run.method), hub.fetch_model(prepared.model)
    with errors_attributed_to("model, lora or options"):
        trainer = method.build_trainer(
            job.run, prepared.args, model, prepared.train, prepared.held_out, prepared.signals
        )
    with prepared.args.main_process_first(local=True, desc="leaving out rows"):
        for warning in truncation.leave_out_rows(trainer, prepared.train, prepared.held_out):
            if job.environment.resume_from is None:
                log.log_message("warning", warning)
    preflight.require_embeddings(trainer)
    if not preflight.is_tokenized(trainer.train_dataset) and not isinstance(trainer.train_dataset, IterableDataset):
        _require_rendered_rows(job, prepared, trainer.processing_class)
    trainer.require_a_batch()
    require_gathering(trainer.accelerator)
    return trainer


def _attach_callbacks(
    job: TrainingJob, prepared: PreparedRun, trainer: ResumableTrainer, start: StartingPoint, log: EventLog
) -> StepEndCallback:
    """Add Relay's reports, checkpoints and stops to the library's trainer."""
    if start.checkpoint is not None:
        trainer.args.eval_on_start = False  # an earlier attempt did it
    every, seconds = job.run.checkpoint.every, job.environment.checkpoint_seconds
    interval = CheckpointInterval(Every(seconds=seconds) if every.steps is None and seconds else every)
    agree, restore = build_agreement(start.world.processes), build_restore(trainer, start.checkpoint)
    step_ends = StepEndCallback(trainer, job.control, interval, agree, restore)
    reporter = EventReporter(trainer, log, job.run.checkpoint.keep.metric)
    watch = FinitenessWatch(trainer, job.run.lifecycle.on_nan, log)

    def save() -> None:
        if not watch.allows_save():
            return
        with trainer.during("saving"):
            folder = checkpoints.save_checkpoint(trainer, job.environment.staging, start.describe())
        if prepared.is_main:
            step = trainer.state.global_step
            metrics, due = reporter.checkpoint_metrics(step), trainer.evaluation_due
            log.log_checkpoint(step, folder.name, metrics, evaluation_due=due)
            if job.environment.keep_last is not None:
                checkpoints.prune_checkpoints(job.environment.staging, job.environment.keep_last)

    trainer.save_hook = save
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(step_ends)
    if prepared.is_main:
        trainer.add_callback(reporter)
        phases = PhaseReporter(log)
        trainer.phase_hook = phases.during
        trainer.add_callback(phases)  # after the steps, each of which ends a phase
        if sys.stderr.isatty():  # a user is watching
            trainer.add_callback(ProgressBar)
        rows, evaluates = prepared.held_out or prepared.train, prepared.held_out is not None
        trainer.add_callback(SampleCallback(trainer, job.run.samples, rows, log, evaluates=evaluates))
    trainer.add_callback(watch)  # the last, so that what it stops at has been reported
    return step_ends


def _describe_result(job: TrainingJob, prepared: PreparedRun, trainer: ResumableTrainer) -> dict[str, Any]:
    """Return the facts that are stored with the result."""
    return {
        "run": job.environment.run_id,
        "method": job.run.method,
        "model": prepared.model.name,
        "revision": prepared.model.revision,
        **({"init_from": prepared.model.origin} if prepared.model.origin else {}),
        "steps": trainer.state.global_step,
        "seed": job.run.seed,
        "versions": read_versions(),
    }


def _out_of_memory_message(said: str) -> str:
    """Return one line that always begins alike, so that hosts and users recognise it."""
    name, line = "CUDA out of memory", said.strip().partition("\n")[0]
    return line if line.startswith(name) else f"{name}: {line}" if line else name


def expected_outcome(error: Exception) -> Outcome | None:
    """Return how an expected error ends the attempt, or None for an error that needs its traceback."""
    match error:
        case ConfigError():
            return Outcome(REFUSED, str(error))
        case torch.OutOfMemoryError():
            return Outcome(FAILED, _out_of_memory_message(str(error)))
        case checkpoints.CheckpointError() | HostError() | NotFiniteError() | RewardError():
            return Outcome(FAILED, str(error))
    return None

"""Where an attempt starts: from the beginning, or at a checkpoint of an earlier one and with what goes on there."""

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainingArguments

from runfile import RunFile
from trainers import fingerprint, methods, sharding
from trainers.batches import (
    BatchShape,
    Dealing,
    LossUnit,
    StepLoss,
    count_rows,
    fit_shape,
    format_processes,
    list_fitting_processes,
    split_tail,
)
from trainers.checkpoints import LoggingState, SavedCheckpoint, World
from trainers.conditions import (
    Conditions,
    Difference,
    Fidelity,
    compare_conditions,
    judge_fidelity,
    list_inexactness,
    read_conditions,
)
from trainers.errors import ConfigError, HostError
from trainers.events import EventLog
from trainers.fingerprint import Fingerprint
from trainers.resumable import ResumableTrainer

_PLACE = "(resources.gpus_per_node)"  #: what a user sets to have another number of processes
_FOREIGN_CHECKPOINT = (
    "another trainer saved this checkpoint: training resumes, but not bit for bit; options and data are not compared "
    "with those that it was trained with"
)


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """Where an attempt starts: at a checkpoint or from the beginning."""

    checkpoint: SavedCheckpoint | None
    world: World  #: the processes and threads to train with
    fingerprint: Fingerprint  #: of what the run trains
    origin: BatchShape  #: the split of a step with which the run began
    shape: BatchShape  #: the split with which this attempt trains
    loss: StepLoss  #: what the loss of a step is a mean of
    differences: tuple[Difference, ...] = ()  #: what is not as it was when the checkpoint was saved
    conditions: Conditions = field(default_factory=dict)  #: what this attempt trains with

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint's manifest says of the attempt that saves it."""
        batches = {"origin": asdict(self.origin), "split": asdict(self.shape)}
        return {
            "world": asdict(self.world),
            "identity": dict(self.fingerprint),
            "batches": batches,
            "conditions": dict(self.conditions),
        }

    def settle(self, trainer: ResumableTrainer, log: EventLog) -> "StartingPoint":
        """Have the trainer resume here, log how exactly it does, and return the start with the conditions that
        are known once the model is loaded.

        Raises HostError where this host's number of processes cannot go on with the run's steps.
        """
        settled = replace(self, conditions=read_conditions(trainer))
        if self.checkpoint is not None:
            if self._has_new_world:
                trainer.redrawn_at = self.checkpoint.step
            if self.shape != self.origin:
                self._deal_rows(trainer, self.checkpoint)
            found = [*self.differences, *compare_conditions(self.checkpoint.conditions, settled.conditions)]
            log.log_resume(self.checkpoint.step, judge_fidelity(found), [each.text for each in found])
        return settled

    def _deal_rows(self, trainer: ResumableTrainer, checkpoint: SavedCheckpoint) -> None:
        """Have the trainer train the rows that the origin of the run would, in this attempt's split.

        Raises HostError where the last step of an epoch cannot be split over so many processes.
        """
        args, loss = trainer.args, trainer.refine_step_loss(self.loss)
        if fit_shape(self.origin, self.shape.micro_batch, self.shape.processes, loss.unit) is None:
            raise _refusal(checkpoint, self.origin, self.shape.micro_batch, self.shape.processes, loss)
        rows, drop_last = len(cast(Sized, trainer.train_dataset)), args.dataloader_drop_last
        trained = count_rows(self.origin, rows, drop_last=drop_last)
        tail = trained % self.origin.rows
        if (
            tail
            and split_tail(tail, self.origin, self.shape, loss.unit) is None
            and _reaches_epoch_end(checkpoint.step, math.ceil(trained / self.origin.rows), args)
        ):
            fitting = list_fitting_processes(self.origin, self.shape.micro_batch, loss.unit, rows, drop_last=drop_last)
            said = (
                f"{checkpoint.folder.name}: the last step of an epoch trains {tail} row{'s' if tail > 1 else ''}, "
                f"which {self.shape} cannot share as {self.origin} does"
            )
            if not fitting:
                size = self.origin.micro_batch
                raise ConfigError(f"{said}; options.per_device_train_batch_size must stay {size} during the run")
            raise HostError(f"{said}; resume with {format_processes(fitting)} {_PLACE}")
        trainer.dealing = Dealing(self.origin, self.shape, loss.unit)

    @property
    def _has_new_world(self) -> bool:
        """True when another number of processes saved the checkpoint."""
        saved = None if self.checkpoint is None else self.checkpoint.world
        return saved is not None and saved.processes != self.world.processes


def choose_start(
    run: RunFile, args: TrainingArguments, trained: Fingerprint, resume_from: Path | None, log: EventLog
) -> StartingPoint:
    """Open the checkpoint to resume from, if there is one, and choose the world to train in, and in `args` the split of
    a step. `trained` is the fingerprint of the run as it is now.

    Raises ConfigError for a checkpoint of a run that trains something else, and HostError where this host's number of
    processes cannot go on with its steps.
    """
    inexact = list_inexactness(args)
    for reason in inexact:
        log.log_message("warning", f"an attempt that resumes does so not bit for bit; {reason}")
    trainer_class = methods.load_method(run.method).trainer_class
    world = World(args.world_size, torch.get_num_threads())
    written = BatchShape(args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size)
    loss = _bind_to_processes(run, args) or trainer_class.describe_step_loss(args)
    found = [Difference(Fidelity.CHANGED, reason) for reason in inexact]
    checkpoint = None if resume_from is None else SavedCheckpoint.open(resume_from)
    if checkpoint is None:
        return StartingPoint(None, world, trained, written, written, loss)
    if checkpoint.world is None or checkpoint.fingerprint is None:
        fingerprint.require_same_weights(checkpoint.folder, run)
        sharding.require_shards(checkpoint.folder, run.launch)
        missing = trainer_class.describe_missing_state(checkpoint)
        log.log_message("warning", "; ".join(filter(None, (_FOREIGN_CHECKPOINT, missing))))
        found.append(Difference(Fidelity.CHANGED, "another trainer saved the checkpoint"))
        return StartingPoint(checkpoint, world, trained, written, written, loss, tuple(found))
    fingerprint.require_same_run(checkpoint.folder, checkpoint.fingerprint, trained)
    sharding.require_shards(checkpoint.folder, run.launch)
    origin = _read_origin(checkpoint, checkpoint.fingerprint, checkpoint.world.processes, args)
    shape = _continue_split(checkpoint, checkpoint.fingerprint, origin, written, loss, type(args))
    args.per_device_train_batch_size, args.gradient_accumulation_steps = shape.micro_batch, shape.accumulation
    if checkpoint.world.processes == world.processes:
        torch.set_num_threads(checkpoint.world.threads)  # sums in another order give other bits
        world = checkpoint.world
    found += _list_differences(checkpoint, trained, shape)
    return StartingPoint(checkpoint, world, trained, origin, shape, loss, tuple(found))


def require_same_world(resume_from: Path | None, processes: int, why: str) -> None:
    """Raise HostError where another number of processes saved the checkpoint to resume from, since the options are
    refused (`why`) with this number.
    """
    saved = None if resume_from is None else SavedCheckpoint.open(resume_from).world
    if saved is not None and saved.processes != processes:
        raise HostError(
            f"options: {' '.join(why.split())} with {format_processes([processes])}; resume with "
            f"{format_processes([saved.processes])} {_PLACE}"
        )


def _list_differences(checkpoint: SavedCheckpoint, trained: Fingerprint, shape: BatchShape) -> Iterator[Difference]:
    """Yield what has changed in how steps are split, and what cannot be compared."""
    saved, world = checkpoint.batches and BatchShape(**checkpoint.batches["split"]), checkpoint.world
    if saved and saved != shape:
        yield Difference(Fidelity.CLOSE, f"{saved} became {shape}: a step still trains {shape.rows} rows")
    elif world and world.processes != shape.processes:
        yield Difference(
            Fidelity.CLOSE,
            f"{format_processes([world.processes])} became {shape}: a step still trains {shape.rows} rows",
        )
    if world and world.processes != shape.processes:
        yield Difference(Fidelity.CLOSE, "what is drawn at random (dropout) is drawn anew")
    if unrecorded := fingerprint.list_unrecorded(checkpoint.fingerprint or {}, trained):
        names = ", ".join(unrecorded)
        yield Difference(Fidelity.CLOSE, f"the contents of {names} were not recorded with the checkpoint")


def _continue_split(
    checkpoint: SavedCheckpoint,
    before: Fingerprint,
    origin: BatchShape,
    written: BatchShape,
    loss: StepLoss,
    config_class: type[TrainingArguments],
) -> BatchShape:
    """Return how to split the origin's steps now. `written` is what the run file and this host's processes make.

    Raises ConfigError where the run file asks for steps of other rows, or for another micro-batch where the loss
    depends on it, and HostError where so many processes cannot share the rows of a step.
    """
    size, accumulation = _read_split_options(before, config_class)
    asked = f"per_device_train_batch_size {written.micro_batch} x gradient_accumulation_steps {written.accumulation}"
    if written.micro_batch * written.accumulation != size * accumulation and written.rows != origin.rows:
        raise ConfigError(
            f"options: {asked} x {format_processes([written.processes])} is {written.rows} rows a step, and "
            f"{checkpoint.folder.name} was trained with {origin.rows} ({origin}); another batch must be trained as a "
            "new run, under another name"
        )
    bound = loss.unit in (LossUnit.MICRO_BATCH, LossUnit.PROCESS)
    if bound and written.micro_batch != origin.micro_batch:
        raise ConfigError(
            f"options.per_device_train_batch_size: must stay {origin.micro_batch} during the run, and is "
            f"{written.micro_batch}; {loss.why}"
        )
    shape = fit_shape(origin, written.micro_batch, written.processes, loss.unit)
    if shape is None:
        raise _refusal(checkpoint, origin, written.micro_batch, written.processes, loss)
    return shape


def _refusal(
    checkpoint: SavedCheckpoint, origin: BatchShape, micro_batch: int, processes: int, loss: StepLoss
) -> HostError:
    """Return the error that names the numbers of processes which can go on with the run."""
    fitting = list_fitting_processes(origin, micro_batch, loss.unit)
    why = f"; {loss.why}" if loss.why else ""
    return HostError(
        f"{checkpoint.folder.name}: {format_processes([processes])} cannot go on with steps of {origin.rows} rows, "
        f"begun as {origin}{why}; resume with {format_processes(fitting or [origin.processes])} {_PLACE}"
    )


def _read_origin(
    checkpoint: SavedCheckpoint, before: Fingerprint, processes: int, args: TrainingArguments
) -> BatchShape:
    """Return the split of a step with which the run began. An older release kept it in the options."""
    if checkpoint.batches is not None:
        return BatchShape(**checkpoint.batches["origin"])
    return BatchShape(*_read_split_options(before, type(args)), processes)


def _read_split_options(before: Fingerprint, config_class: type[TrainingArguments]) -> tuple[int, int]:
    """Return micro-batch and accumulation as a run file asked for them, or the library's defaults."""
    defaults: Mapping[str, Any] = {field.name: field.default for field in fields(config_class)}
    size, accumulation = (int(before.get(f"options.{name}", defaults[name])) for name in fingerprint.SPLIT_OPTIONS)
    return size, accumulation


def _bind_to_processes(run: RunFile, args: TrainingArguments) -> StepLoss | None:
    """Return why, whatever the method, the rows or the state of this run belong to its number of processes and its
    micro-batch; None where they do not.
    """
    config: Any = args.accelerator_config
    sharded = sharding.list_bound_sections(run.launch)
    reasons = [
        (run.data is not None and run.data.streaming, "data.streaming: where a pass of a stream ends is not known"),
        (sharded, f"launch.{''.join(sharded[:1])}: the state in a checkpoint belongs to its processes"),
        (
            args.train_sampling_strategy == "batch_rebalance",
            "options.train_sampling_strategy: batch_rebalance deals rows to its number of processes",
        ),
        (args.auto_find_batch_size, "options.auto_find_batch_size: the micro-batch is the library's choice"),
        (
            config.split_batches or config.dispatch_batches or not config.even_batches,
            "options.accelerator_config: rows are not dealt as by default",
        ),
    ]
    return next((StepLoss(LossUnit.PROCESS, why) for bound, why in reasons if bound), None)


def _reaches_epoch_end(step: int, steps_per_epoch: int, args: TrainingArguments) -> bool:
    """Return True when a run that goes on after `step` trains the last step of an epoch."""
    planned = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return planned >= (step // steps_per_epoch + 1) * steps_per_epoch


def build_restore(trainer: ResumableTrainer, resume: SavedCheckpoint | None) -> Callable[[], None]:
    """Return a function that restores the logging state, once the library has reset its own, and the trainer's extra
    state.
    """

    def restore() -> None:
        rank = trainer.args.process_index
        state = None if resume is None else _read_logging_state(resume, rank, trainer.args.world_size)
        if state is not None:
            state.restore(trainer)
        elif resume:
            inner: Any = trainer
            inner._total_loss_scalar = resume.sum_logged_losses()
        if resume:
            same = resume.world is not None and resume.world.processes == trainer.args.world_size
            extra = resume.read_extra_state(rank if same else 0, trainer.args.device)
            alike = {name: value for name, value in extra.items() if name in trainer.shared_state}
            trainer.restore_extra_state(extra if same else alike)
        if resume and trainer.state.global_step >= trainer.state.max_steps:
            trainer.evaluate_resumed(str(resume.folder))  # no epoch will

    return restore


def _read_logging_state(resume: SavedCheckpoint, rank: int, processes: int) -> LoggingState | None:
    """Return the state from which this rank goes on logging; None where the checkpoint has none. What the ranks of
    another world counted each by itself is shared among the new ones: the library averages losses, and adds operations.
    """
    before = 1 if resume.world is None else resume.world.processes
    if before == processes:
        own = resume.read_logging_state(rank)
        return None if own is None else LoggingState(**own)
    states = [LoggingState(**state) for each in range(before) if (state := resume.read_logging_state(each))]
    if not states:
        return None
    return replace(
        states[0],
        tr_loss=sum(state.tr_loss for state in states) / len(states),
        flos=sum(state.flos for state in states) / processes,
    )

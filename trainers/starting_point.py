"""Where an attempt starts: from the beginning, or at a checkpoint of an earlier one and with what goes on there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from runfile import RunFile
from trainers import fingerprint, methods
from trainers.checkpoints import LoggingState, SavedCheckpoint, World
from trainers.events import EventLog
from trainers.fingerprint import Fingerprint
from trainers.resumable import ResumableTrainer, list_inexactness

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


def choose_start(
    run: RunFile, args: TrainingArguments, trained: Fingerprint, resume_from: Path | None, log: EventLog
) -> StartingPoint:
    """Open the checkpoint to resume from, if there is one, and choose the world to train in. `trained` is the
    fingerprint of the run as it is now.

    Raises ConfigError for a checkpoint of a run that trains something else.
    """
    for reason in list_inexactness(args):
        log.log_message("warning", f"an attempt that resumes does so not bit for bit; {reason}")
    world = World(args.world_size, torch.get_num_threads())
    if resume_from is None:
        return StartingPoint(None, world, trained)
    checkpoint = SavedCheckpoint.open(resume_from)
    if checkpoint.world is None or checkpoint.fingerprint is None:
        fingerprint.require_same_weights(checkpoint.folder, run)
        missing = methods.load_method(run.method).trainer_class.describe_missing_state(checkpoint)
        log.log_message("warning", "; ".join(filter(None, (_FOREIGN_CHECKPOINT, missing))))
        return StartingPoint(checkpoint, world, trained)
    fingerprint.require_same_run(checkpoint.folder, checkpoint.fingerprint, trained)
    if checkpoint.world.processes != world.processes:
        log.log_message(
            "warning",
            f"{checkpoint.world.processes} processes saved this checkpoint, and {world.processes} resume from it: "
            "training resumes, but not bit for bit",
        )
        return StartingPoint(checkpoint, world, trained)
    torch.set_num_threads(checkpoint.world.threads)  # sums in another order give other bits
    return StartingPoint(checkpoint, checkpoint.world, trained)


def build_restore(trainer: ResumableTrainer, resume: SavedCheckpoint | None) -> Callable[[], None]:
    """Return a function that restores the logging state, once the library has reset its own, and the trainer's extra
    state.
    """

    def restore() -> None:
        rank = trainer.args.process_index
        state = resume and (resume.read_logging_state(rank) or resume.read_logging_state(0))
        if state:
            LoggingState(**state).restore(trainer)
        elif resume:
            inner: Any = trainer
            inner._total_loss_scalar = resume.sum_logged_losses()
        if resume:
            same = resume.world is not None and resume.world.processes == trainer.args.world_size
            extra = resume.read_extra_state(rank if same else 0, trainer.args.device)
            alike = {name: value for name, value in extra.items() if name in trainer.shared_state}
            trainer.restore_extra_state(extra if same else alike)

    return restore

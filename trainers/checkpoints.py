"""Checkpoints from which another host resumes bit for bit: written to a draft folder, made durable, then renamed.

A folder holds what the library trainer saves (weights as safetensors, optimizer, scheduler, random states of every
rank, its own state), the tokenizer and the chat template, and three things of Relay's:

- `relay_state.json`: the step, the fingerprint of what was trained (see `trainers.fingerprint`), the world in which it
  was trained (processes and threads, which both change the bits), how its steps were split (see `trainers.batches`),
  with which libraries and GPU (see `trainers.conditions`), and the size of every file. An import writes one without
  these facts into what another trainer saved;
- `rank_00000.json`, one for each rank: the logging state. The library restores weights but not the sums since the last
  log, so the first values logged after a resume would differ from those of an uninterrupted run;
- `rank_00000.pt`, where a trainer has more to remember (`ResumableTrainer.collect_extra_state`), for instance
  completions that it has not trained on yet.

Nothing in it needs unpickling without `weights_only`. (The library's `training_args.bin` does, and is left out.)
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from storage.loadable import find_missing_parts
from trainers.errors import ConfigError, HostError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainerState, TrainingArguments

FORMAT = 1
MANIFEST = "relay_state.json"
TRAINER_STATE = "trainer_state.json"
_PICKLED = "training_args.bin"
_TORCH_WRITER_SOURCE = "inline_container"  #: the source file that errors of torch's archive writer name
_FULL_DISK_BYTES = 1 << 20  #: a disk that refused a write is full when it has fewer free bytes


class CheckpointError(Exception):
    """A checkpoint that cannot be resumed from. The message says what is missing."""


class SaveableTrainer(Protocol):
    """A library trainer whose state can be saved, together with what this rank must remember (see
    `trainers.resumable`).
    """

    state: "TrainerState"
    args: "TrainingArguments"
    accelerator: "Accelerator"

    def is_world_process_zero(self) -> bool: ...

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None: ...

    def collect_extra_state(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class World:
    """What decides the order of floating-point sums on a CPU: the number of processes, and of threads in each."""

    processes: int
    threads: int


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    world: World | None  #: None when another trainer saved it
    fingerprint: Mapping[str, Any] | None  #: None when another trainer saved it
    conditions: Mapping[str, str] | None = None  #: None in what older releases saved
    batches: Mapping[str, Mapping[str, int]] | None = None  #: the splits of a step; None in what older releases saved

    @classmethod
    def open(cls, folder: Path) -> "SavedCheckpoint":
        """Open the checkpoint in `folder`. Raises CheckpointError, which names the files that are missing or have
        another size.
        """
        try:
            state = json.loads((folder / MANIFEST).read_text())
            if state["format"] != FORMAT:
                raise CheckpointError(f"{folder}: format {state['format']}, this release reads {FORMAT}")
            sizes = {name: (folder / name).stat().st_size for name in state["files"]}
            world = None if state["world"] is None else World(**state["world"])
            checkpoint = cls(
                folder, state["step"], world, state["identity"], state.get("conditions"), state.get("batches")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: not a whole checkpoint ({error})") from error
        if wrong := [name for name, size in state["files"].items() if sizes[name] != size]:
            raise CheckpointError(f"{folder}: {', '.join(wrong)} has the wrong size")
        return checkpoint

    def read_logging_state(self, rank: int) -> dict[str, Any] | None:
        """Return the fields of that rank's `LoggingState`, or None for a rank that did not exist."""
        path = self.folder / f"{_rank_name(rank)}.json"
        state: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return state

    def read_extra_state(self, rank: int, device: Any) -> dict[str, Any]:
        """Return what `ResumableTrainer.collect_extra_state` gave for that rank, with tensors on `device`; empty
        without any.
        """
        import torch  # imported here, because the process that starts the ranks must stay small

        path = self.folder / f"{_rank_name(rank)}.pt"
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True) if path.is_file() else {}
        return state

    @property
    def lacks_optimizer(self) -> bool:
        """True when the checkpoint has only weights. The libraries then start with a new optimizer and
        report nothing.
        """
        return not any(self.folder.glob("optimizer*")) and not any(self.folder.glob("global_step*"))

    def sum_logged_losses(self) -> float:
        """Return the sum of the losses of all logged steps, as the log rounds them, for a checkpoint without a logging
        state.
        """
        history = json.loads((self.folder / TRAINER_STATE).read_text())["log_history"]
        logged = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        before = [0, *(step for step, _ in logged)]
        return float(sum((step - last) * loss for (step, loss), last in zip(logged, before, strict=False)))


@dataclass(frozen=True, slots=True)
class LoggingState:
    """One rank's sums and windows since the trainer's last log. Floats pass through JSON exactly (NaN too)."""

    tr_loss: float  #: sum of this rank's losses since the last log
    total_loss: float  #: sum of the losses logged so far
    last_logged: int  #: step of the last log
    flos: float  #: floating-point operations not yet added to the trainer's state
    metrics: Mapping[str, Mapping[str, list[float]]]  #: see `metric_windows`
    tokens: float  #: tokens trained on
    evaluation_due: bool = False  #: the last step is still to be evaluated

    @classmethod
    def capture(cls, trainer: SaveableTrainer) -> "LoggingState":
        """Read the state from the trainer."""
        inner: Any = trainer
        return cls(
            tr_loss=inner._tr_loss.item(),
            total_loss=inner._total_loss_scalar,
            last_logged=inner._globalstep_last_logged,
            flos=float(inner.current_flos),
            metrics={
                mode: {name: list(window) for name, window in names.items()}
                for mode, names in metric_windows(inner).items()
            },
            tokens=getattr(inner, "_total_train_tokens", 0),
            evaluation_due=getattr(inner, "evaluation_due", False),
        )

    def restore(self, trainer: SaveableTrainer) -> None:
        """Write the state to the trainer. Called when training begins, after the library has reset its own sums."""
        inner: Any = trainer
        inner._tr_loss.fill_(self.tr_loss)
        inner._total_loss_scalar = self.total_loss
        inner._globalstep_last_logged = self.last_logged
        inner.current_flos = self.flos
        inner.evaluation_due = self.evaluation_due
        for mode, names in self.metrics.items():
            for name, window in names.items():
                metric_windows(inner)[mode][name] = list(window)
        if hasattr(inner, "_total_train_tokens"):
            inner._total_train_tokens = self.tokens


def metric_windows(trainer: Any) -> dict[str, dict[str, list[float]]]:
    """Return TRL's metrics since the last log, by mode (train, eval) and name. Its older trainers use another
    attribute.
    """
    found: dict[str, dict[str, list[float]]] = getattr(trainer, "_metrics", None) or getattr(
        trainer, "_stored_metrics", {}
    )
    return found


def folder_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step_{step:08d}"


def save_checkpoint(trainer: SaveableTrainer, staging: Path, facts: Mapping[str, Any]) -> Path:
    """Write the trainer's whole state to `staging/step_%08d` and return that folder. Every rank calls it. The facts
    (`StartingPoint.describe`) become part of its manifest.

    Until the rename the folder's name begins with `.tmp-`, so a reader of `step_*` sees only complete checkpoints.
    """
    step = int(trainer.state.global_step)
    final = staging / folder_name(step)
    with _draft_folder(trainer, final) as draft:
        _write_rank_state(trainer, draft)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            trainer.state.save_to_json(str(draft / TRAINER_STATE))
            (draft / _PICKLED).unlink(missing_ok=True)
            _require_loadable(draft, final.name)
            _write_manifest(draft, {"format": FORMAT, "step": step, **facts})
            commit_folder(draft, final)
    return final


def _write_rank_state(trainer: SaveableTrainer, draft: Path) -> None:
    """Write this rank's part of the state."""
    import torch

    inner: Any = trainer
    trainer.save_model(str(draft), _internal_call=True)
    inner._save_optimizer_and_scheduler(str(draft))
    inner._save_scaler(str(draft))
    inner._save_rng_state(str(draft))
    own = draft / _rank_name(trainer.args.process_index)
    own.with_suffix(".json").write_text(json.dumps(asdict(LoggingState.capture(trainer))))
    if extra := trainer.collect_extra_state():
        torch.save(extra, own.with_suffix(".pt"))


def save_result(trainer: SaveableTrainer, output: Path, facts: Mapping[str, Any]) -> None:
    """Write the trained model or adapter, its tokenizer and chat template, and `relay.json` (the facts). Every rank
    calls it.
    """
    with _draft_folder(trainer, output) as draft:
        trainer.save_model(str(draft), _internal_call=True)
        if trainer.is_world_process_zero():
            (draft / _PICKLED).unlink(missing_ok=True)
            _require_loadable(draft, "the result")
            (draft / "relay.json").write_text(json.dumps(facts, indent=2) + "\n")
            commit_folder(draft, output)


def _require_loadable(folder: Path, name: str) -> None:
    """Raise ConfigError when the files in `folder`, which becomes `name`, are no model or adapter that the libraries
    load. This is the last guard, whatever the frameworks saved: what a run publishes can be used.
    """
    if missing := find_missing_parts(folder):
        raise ConfigError(
            f"launch or options: {name} would hold no model that can be loaded, so it is not kept: {'; '.join(missing)}"
        )


@contextmanager
def _draft_folder(trainer: SaveableTrainer, final: Path) -> Iterator[Path]:
    """Provide an empty folder in which all ranks write what becomes `final`. Raises HostError for a full or broken
    disk, and then removes the draft, so that the next attempt does not find the disk full too.
    """
    draft = final.parent / f".tmp-{final.name}"
    try:
        if trainer.is_world_process_zero():
            _make_empty(draft)
        trainer.accelerator.wait_for_everyone()
        yield draft
    except Exception as error:
        fault = _disk_fault(error, final.parent)
        shutil.rmtree(draft, ignore_errors=True)
        if fault is None:
            raise
        raise HostError(f"{final.name} cannot be written: {fault}") from error


def _disk_fault(error: Exception, folder: Path) -> str | None:
    """Return the disk's error in one line, or None for an error that has nothing to do with the disk.

    The libraries do not raise OSError: safetensors has an error of its own, and torch one that does not give the
    reason.
    """
    said = str(error).partition("\n")[0]
    if not (isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or _TORCH_WRITER_SOURCE in said):
        return None
    full = "No space left" not in said and folder.is_dir() and shutil.disk_usage(folder).free < _FULL_DISK_BYTES
    return f"No space left on device ({said})" if full else said


def commit_folder(draft: Path, final: Path) -> None:
    """Make every byte of `draft` durable, then rename it to `final`, which it replaces."""
    for path in sorted(draft.rglob("*")):
        path.chmod(
            0o755 if path.is_dir() else 0o644
        )  # libraries write weights with mode 0600, which other users of the host cannot read
        _sync_to_disk(path)
    _sync_to_disk(draft)
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)
    _sync_to_disk(final.parent)


def newest_checkpoint(staging: Path) -> SavedCheckpoint | None:
    """Return the complete checkpoint with the greatest step, or None. Damaged ones are skipped."""
    for folder in sorted(staging.glob("step_*"), reverse=True):
        try:
            return SavedCheckpoint.open(folder)
        except CheckpointError:
            continue
    return None


def prune_checkpoints(staging: Path, keep: int) -> None:
    """Remove all checkpoints but the `keep` newest, and what an interrupted save left behind.

    A host takes folders away by renaming them. A folder to be removed is renamed first too, so the host gets it whole
    or not at all.
    """
    for draft in staging.glob(".tmp-*"):
        shutil.rmtree(draft)
    for folder in sorted(staging.glob("step_*"), reverse=True)[keep:]:
        with suppress(FileNotFoundError):  # the host has taken it
            shutil.rmtree(folder.rename(staging / f".tmp-{folder.name}"))


def _write_manifest(draft: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts and the size of every file of the draft."""
    files = {str(path.relative_to(draft)): path.stat().st_size for path in sorted(draft.rglob("*")) if path.is_file()}
    (draft / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")


def _rank_name(rank: int) -> str:
    """Return the stem of a rank's file names."""
    return f"rank_{rank:05d}"


def _make_empty(folder: Path) -> None:
    """Replace a folder by an empty one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sync_to_disk(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

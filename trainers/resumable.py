"""The library trainer, extended to save and resume Relay's way. Every method's trainer inherits from it first."""

import hashlib
import json
import math
import random
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import IterableDataset, RandomSampler, Sampler
from transformers import Trainer, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

from trainers.batches import Dealing, DealtBatches, LossUnit, StepLoss
from trainers.checkpoints import SavedCheckpoint, metric_windows
from trainers.errors import ConfigError, errors_attributed_to
from trainers.models.hub import LocalModel
from trainers.rollout import Rollout
from trainers.sharding import gather_weights, plain_module_names
from trainers.truncation import RowFilter

_REFERENCE = "ref"  #: TRL's name of the adapter that is the reference


class EvaluationPostponed(Exception):
    """A stop was requested during an evaluation, which the next attempt carries out."""


class ResumableTrainer(Trainer):
    """A library trainer whose checkpoints are written by `save_hook` and whose logs survive a NaN."""

    save_hook: Callable[[], None]
    base_model: LocalModel  #: the model before training
    evaluation_due = False  #: the last step is still to be evaluated
    shared_state: tuple[str, ...] = ()  #: names in the extra state whose values are the same in every rank
    why_rows_are_left_out = "nothing of them is left to learn within options.max_length"
    dealing: Dealing | None = None  #: how rows are dealt, where that is not as the library would deal them
    redrawn_at: int | None = None  #: the step after which a new world draws from new random states, or None
    phase_hook: Callable[[str], AbstractContextManager[None]] | None = None  #: reports a phase, while it lasts
    loss_is_likelihood = False  #: the loss is a mean over tokens of -log(p), and exp(loss) a perplexity

    def during(self, phase: str) -> AbstractContextManager[None]:
        """Return a context for a phase of the training that is no step (see `trainers.reporting`)."""
        return nullcontext() if self.phase_hook is None else self.phase_hook(phase)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save by `save_hook`. The library itself would write into the final folder, without fsync, and delete old
        folders.
        """
        self.save_hook()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as the library does, with three changes: weights that FSDP has sharded are always gathered, an adapter
        names its base model as others can find it (not by a folder of this host), and the adapter that DPO and KTO
        compare with is removed, since every attempt copies it from the initial weights.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if self.is_fsdp_enabled:
            weights = gather_weights(self.model, self.base_model.folder)
            with plain_module_names(self.model):
                self._save(str(folder), state_dict=weights)
        else:
            super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            if (folder / _REFERENCE / "adapter_config.json").is_file():
                shutil.rmtree(folder / _REFERENCE)
            name_base_model(folder, self.base_model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the optimizer and the scheduler, and under FSDP the shards of the weights as well."""
        with plain_module_names(self.model):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load the weights of a checkpoint."""
        with plain_module_names(self.model):
            super()._load_from_checkpoint(*args, **kwargs)

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

    def build_row_filter(self) -> RowFilter | None:
        """Return what tells prepared rows of which something is left to learn from others; None where the library
        itself leaves those out.
        """
        return None

    @classmethod
    def describe_step_loss(cls, args: Any) -> StepLoss:
        """Return what the loss of a step is a mean of, with these options."""
        return StepLoss(LossUnit.PROCESS, "it trains on completions that each process generates")

    def refine_step_loss(self, loss: StepLoss) -> StepLoss:
        """Return what the loss of a step is a mean of, with this model."""
        if loss.unit is not LossUnit.PROCESS and getattr(self, "aux_loss_enabled", False):
            return StepLoss(LossUnit.MICRO_BATCH, "the loss of the experts' router is one of a micro-batch")
        if loss.unit is LossUnit.TOKEN and not self.model_accepts_loss_kwargs:
            return StepLoss(LossUnit.MICRO_BATCH, "this model divides its loss by the tokens of a micro-batch")
        return loss

    def newest_rollouts(self) -> Sequence[Rollout]:
        """Return the newest completions that the trainer generated and trained on; empty for methods that generate
        none.
        """
        return ()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the library's sampler, with an order in each epoch that a resumed attempt finds again."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        return self.order_epochs(sampler) if self.dealing is None else self._deal_rows(sampler, self.dealing)

    def _deal_rows(self, sampler: Any, dealing: Dealing) -> Sampler[list[int]]:
        """Return the batches of this process, from the library's sampler as it is in the origin of the run."""
        if isinstance(sampler, LengthGroupedSampler):  # its order depends on the rows that a process has in a step
            sampler.batch_size = dealing.origin.micro_batch * dealing.origin.accumulation
        order = self.order_epochs(sampler)
        assert order is not None  # only streams have none, and those are not dealt
        if isinstance(order, RandomSampler):  # what accelerate makes of it
            order = SeedableRandomSampler(order.data_source)
        return DealtBatches(order, dealing, self.args.process_index, drop_last=self.args.dataloader_drop_last)

    def order_epochs(self, sampler: Sampler[int] | None) -> Sampler[int] | None:
        """Return the sampler with an order that is a function of the seed and the epoch."""
        seeded = self.accelerator.dataloader_config.use_seedable_sampler and isinstance(sampler, RandomSampler)
        if sampler is None or seeded or not hasattr(sampler, "generator"):
            return sampler  # accelerate gives it a seed for each epoch, or it draws nothing, or it is told the epoch
        return EpochSampler(sampler, self.args.seed)

    def require_a_batch(self) -> None:
        """Raise ConfigError when there are too few rows for one batch: the library would train no step, or fail
        obscurely.
        """
        if not isinstance(self.train_dataset, Sized) or len(self.get_train_dataloader()):
            return  # a stream shows it while it is trained on
        sampler = self._get_train_sampler()
        library = sampler.library if isinstance(sampler, EpochSampler) else sampler
        if isinstance(library, RepeatSampler):
            needed, unit = library.batch_size, "prompts"
        else:
            needed, unit = self._train_batch_size * self.args.world_size, "rows"
        raise ConfigError(
            f"data.train: one batch takes {needed} {unit}, and there are {len(self.train_dataset)}; give more rows, or "
            f"a smaller options.per_device_train_batch_size than {self.args.per_device_train_batch_size}"
        )

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from: str | None, trial: Any
    ) -> tuple[int, int]:
        """Return the epoch to begin in and the number of its batches that are done. The library takes a stream, which
        has no length, to be in its first pass for ever.
        """
        begun: tuple[int, int] = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from, trial)
        state = Path(resume_from or "", TRAINER_STATE_NAME)
        if resume_from is None or not isinstance(self.train_dataset, IterableDataset) or not state.is_file():
            return begun
        saved = TrainerState.load_from_json(str(state))
        return locate_in_stream(saved.epoch or 0.0, saved.max_steps * self.args.gradient_accumulation_steps)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random states; where another number of processes saved them, draw this rank's from the seed, the
        step and the world, so that a second attempt at it draws the same.
        """
        if self.redrawn_at is None:
            super()._load_rng_state(checkpoint)
            return
        drawn = f"{self.args.seed}/{self.redrawn_at}/{self.args.world_size}/{self.args.process_index}"
        set_seed(int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:4]))

    def create_optimizer(self, model: Any = None) -> Any:
        """Build the optimizer. Raises ConfigError for options that it does not take."""
        with errors_attributed_to("options.optim"):
            return super().create_optimizer(model)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Build the learning-rate schedule. Raises ConfigError for options that it does not take."""
        with errors_attributed_to("options.lr_scheduler_type"):
            return super().create_scheduler(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing when resumed from the last step, where the library would train one step more.

        An evaluation that is due at an epoch's end comes before anything is drawn for the next epoch. Within an epoch
        it comes before the first step, once the batches have been skipped.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self.evaluation_due and kwargs["steps_trained_in_current_epoch"] == 0:
            self.evaluate_resumed(kwargs["resume_from_checkpoint"])
            kwargs["resume_from_checkpoint"] = None  # its random state has been restored
        set_epoch(kwargs["train_dataloader"], kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, save and evaluate, in this order: what is saved says that the evaluation is due, and a resumed attempt
        carries out one that was cut.

        A postponed evaluation leaves no trace: the state that is saved is the one before it.
        """
        saved = self.control.should_evaluate and self.control.should_save
        if saved:
            self.evaluation_due, self.control.should_evaluate = True, False
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self.evaluation_due, self.control.should_evaluate, self.control.should_save = False, True, False
        before = capture_random_states() if self.control.should_evaluate else None
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationPostponed:
            assert before is not None
            restore_random_states(before)
            metric_windows(self).get("eval", {}).clear()
            self.evaluation_due = self.control.should_training_stop = True
            if not saved:
                self.save_hook()

    def evaluate_if_due(self) -> None:
        """Run the evaluation that a stop postponed, as the library would have run it after that step."""
        if self.evaluation_due:
            self.evaluation_due = False
            self._evaluate(None, None)

    def evaluate_resumed(self, checkpoint: str) -> None:
        """Run an evaluation that was due when `checkpoint` was saved, from its random state."""
        if self.evaluation_due:
            self._load_rng_state(checkpoint)
            self.evaluate_if_due()

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


class EpochSampler(Sampler[int]):
    """A library's sampler whose order is a function of the seed and the epoch.

    Such a sampler shuffles with one generator for the whole run, or with the process's, so a new process would begin
    with the order of the first epoch again. This one first draws the passes that the new process has not seen, and
    then gives the order that a process which trains from the beginning has in that epoch.
    """

    def __init__(self, sampler: Sampler[int], seed: int) -> None:
        self.library: Any = sampler  #: draws from its `generator`
        self._seed, self._epoch = seed, 0
        self._drawn: int | None = None  #: passes that the generator has drawn whole; None when it must begin anew

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be that of `epoch`, counted from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch, drawn = self._epoch, self._drawn
        if drawn is None or drawn > epoch:
            self.library.generator = torch.Generator().manual_seed(self._seed)
            drawn = 0
        self._drawn = None
        for _ in range(epoch - drawn):
            deque(self.library, maxlen=0)
        yield from self.library
        self._drawn = epoch + 1

    def __len__(self) -> int:
        return len(self.library)


def set_epoch(loader: Any, epoch: int) -> None:
    """Have a data loader's next pass be that of `epoch`, whatever the libraries have wrapped its samplers in."""
    sampler = loader.batch_sampler
    while sampler is not None:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)


def locate_in_stream(epoch: float, batches: int) -> tuple[int, int]:
    """Return the pass of a stream that is under way, and how many of its batches are done.

    A stream has no length, so the library counts in `epoch` the passes that are over, and the part that the batches of
    the present one are of all `batches` of the run.
    """
    passes = int(epoch)
    return passes, round((epoch - passes) * batches)

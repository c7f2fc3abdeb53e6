"""What a method is: a library's trainer, its options, and what must be prepared for a run that uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from peft import PeftModel
from transformers import AutoTokenizer, TrainingArguments

from runfile import RunFile
from trainers.data.disk_rows import as_dataset, as_stream
from trainers.data.loading import Rows
from trainers.errors import ConfigError
from trainers.models.hub import LocalModel, ModelSource, fetch_model
from trainers.models.loading import (
    LANGUAGE_TASK,
    copy_reference_model,
    hold_trained_in_float32,
    load_initial_model,
    load_model,
    require_matches,
)
from trainers.resumable import ResumableTrainer
from trainers.rewards import functions
from trainers.rewards.functions import RewardFunction, RewardModel

#: For trainers that, left to themselves, load the type that lies on disk and spread the model over all GPUs in every
#: rank.
FLOAT32_ON_ONE_DEVICE: Mapping[str, Any] = {"dtype": "float32", "device_map": None}


@dataclass(frozen=True, slots=True)
class LearningSignals:
    """What a run learns from besides its rows: reward functions and reward models, or a teacher."""

    rewards: Sequence[RewardFunction | RewardModel] = ()
    teacher: ModelSource | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One way to train. Each module of `trainers.methods` defines one."""

    trainer_class: type[ResumableTrainer]  #: the library's trainer, extended to resume
    config_class: type[TrainingArguments]  #: the library's config, whose fields are the method's options
    row_kinds: tuple[str, ...]  #: the kinds of rows that it learns from (see `trainers.data.row_formats`)
    task: str = LANGUAGE_TASK  #: what the model learns to give (see `trainers.models.loading`)
    uses_reference: bool = False  #: its trainer takes a reference model
    uses_rewards: bool = False  #: it learns from its own completions, by the run's `rewards`
    uses_teacher: bool = False  #: it learns from the run's teacher
    needs_tokenizer: bool = False  #: its trainer does not find the tokenizer by itself
    model_init_defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  #: values of `model_init` that the run file may replace

    def configure(self, run: RunFile, owned: Mapping[str, Any]) -> TrainingArguments:
        """Return the library's config, from the run's options and those that Relay sets. The library's own errors pass
        through.
        """
        rewarded = {"reward_weights": functions.reward_weights(run)} if self.uses_rewards else {}
        return self.config_class(**{**run.options, **owned, **rewarded})

    def build_trainer(
        self,
        run: RunFile,
        args: Any,
        model: LocalModel,
        train: Rows,
        held_out: Rows | None,
        beside: LearningSignals = LearningSignals(),
    ) -> ResumableTrainer:
        """Load the model and return the library's trainer around it."""
        begun = load_initial_model(run, model, self.task, bf16=args.bf16)
        args.model_init_kwargs = None if begun.model_init is None else {**self.model_init_defaults, **begun.model_init}
        made: Any = self.trainer_class
        trainer: ResumableTrainer = made(
            model=begun.model,
            args=args,
            train_dataset=as_stream(train.rows, run.seed) if _is_streaming(run) else as_dataset(train.rows),
            eval_dataset=as_dataset(held_out.rows) if held_out else None,
            processing_class=begun.tokenizer or self._load_tokenizer(model),
            peft_config=begun.lora,
            **({"ref_model": copy_reference_model(begun)} if self.uses_reference else {}),
            **(functions.load_rewards(beside.rewards, run.model_init) if self.uses_rewards else {}),
            **({"teacher_model": _load_teacher(beside.teacher, run.model_init)} if self.uses_teacher else {}),
        )
        trainer.base_model = model
        if run.lora is not None and run.quantization is None and args.bf16:
            hold_trained_in_float32(cast(PeftModel, trainer.model))
        if begun.lora is not None:
            require_matches(run.lora or {}, cast(PeftModel, trainer.model))
        return trainer

    def _load_tokenizer(self, model: LocalModel) -> Any:
        """Return the tokenizer of a trainer that does not find it by itself."""
        return AutoTokenizer.from_pretrained(model.folder) if self.needs_tokenizer else None


def _is_streaming(run: RunFile) -> bool:
    """Return True when rows are tokenized while the run trains."""
    return run.data is not None and run.data.streaming


def _load_teacher(source: ModelSource | None, model_init: Mapping[str, Any]) -> Any:
    """Load the teacher. Raises ConfigError where the run has none."""
    if source is None:
        raise ConfigError(
            "teacher: is missing; for instance teacher: {name_or_path: HuggingFaceTB/SmolLM2-1.7B-Instruct}"
        )
    return load_model(
        fetch_model(source).folder, LANGUAGE_TASK, **{"dtype": "float32", "device_map": None, **model_init}
    )

"""What a method is: a library's trainer, its options, and what has to be found for a run that uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer, TrainingArguments

from runfile import RunFile
from trainers.data.disk_rows import as_dataset, as_stream
from trainers.data.loading import Rows
from trainers.errors import ConfigError
from trainers.models.hub import LocalModel, ModelSource, local
from trainers.models.loading import LANGUAGE, begin, load, reference
from trainers.resumable import Resumable
from trainers.rewards import functions
from trainers.rewards.functions import Judge, Scorer

#: For trainers that, left to themselves, load the type that lies on disk and spread the model over all GPUs in every
#: rank.
AS_THE_OTHERS: Mapping[str, Any] = {"dtype": "float32", "device_map": None}


@dataclass(frozen=True, slots=True)
class Beside:
    """What a run needs besides its model and rows."""

    rewards: Sequence[Judge | Scorer] = ()
    teacher: ModelSource | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One way to train; each module of `trainers.methods` defines one."""

    library: type[Resumable]  #: the library's trainer, able to resume; nothing of ours changes how it trains
    config: type[TrainingArguments]  #: its config class, whose fields are the method's options
    kinds: tuple[str, ...]  #: of rows that it learns from (see `trainers.data.row_formats`)
    task: str = LANGUAGE  #: what the model is trained to give (see `trainers.models.loading`)
    compares: bool = False  #: with a reference model that its trainer takes
    rewarded: bool = False  #: it learns from completions of its own, by the run's `rewards`
    taught: bool = False  #: by the run's teacher
    tokenizes: bool = False  #: its trainer does not find the tokenizer by itself
    loads: Mapping[str, Any] = field(default_factory=dict)  #: what `model_init` is where the run file does not say

    def configure(self, run: RunFile, owned: Mapping[str, Any]) -> TrainingArguments:
        """The library's config from the run's options and those Relay sets; the library's own errors pass through."""
        rewarded = {"reward_weights": functions.weights(run)} if self.rewarded else {}
        return self.config(**{**run.options, **owned, **rewarded})

    def build(
        self,
        run: RunFile,
        args: Any,
        model: LocalModel,
        train: Rows,
        held_out: Rows | None,
        beside: Beside = Beside(),
    ) -> Resumable:
        """The library's trainer with its model loaded."""
        begun = begin(run, model, self.task)
        args.model_init_kwargs = None if begun.model_init is None else {**self.loads, **begun.model_init}
        made: Any = self.library
        trainer: Resumable = made(
            model=begun.model,
            args=args,
            train_dataset=as_stream(train.rows, run.seed) if _streaming(run) else as_dataset(train.rows),
            eval_dataset=as_dataset(held_out.rows) if held_out else None,
            processing_class=begun.tokenizer or self._tokenizer(model),
            peft_config=begun.lora,
            **({"ref_model": reference(begun)} if self.compares else {}),
            **(functions.loaded(beside.rewards, run.model_init) if self.rewarded else {}),
            **({"teacher_model": _teacher(beside.teacher, run.model_init)} if self.taught else {}),
        )
        trainer.base = model
        return trainer

    def _tokenizer(self, model: LocalModel) -> Any:
        return AutoTokenizer.from_pretrained(model.folder) if self.tokenizes else None


def _streaming(run: RunFile) -> bool:
    return run.data is not None and run.data.streaming


def _teacher(source: ModelSource | None, model_init: Mapping[str, Any]) -> Any:
    if source is None:
        raise ConfigError(
            "teacher: is missing; for instance teacher: {name_or_path: HuggingFaceTB/SmolLM2-1.7B-Instruct}"
        )
    return load(local(source).folder, LANGUAGE, **{"dtype": "float32", "device_map": None, **model_init})

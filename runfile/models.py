"""The run file as typed, frozen values; nothing here reads a file or knows a line.

Names of the Hugging Face libraries stand under `options`, `model_init`, `lora`, `quantization`; all else is ours.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Strict,
    Tag,
    field_validator,
    model_validator,
)

from runfile.scalars import (
    Duration,
    Flag,
    Free,
    Gib,
    Inside,
    Interval,
    Name,
    Number,
    Secret,
    Size,
    StallAfter,
    Text,
    Variables,
    Whole,
    list_sources,
    parse_whole,
)
from runfile.units import Every
from storage import address, checkpoint_ref


class Section(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class ModelSection(Section):
    """What is trained: a Hub name or a folder, or another run's result (weights only, a new curve)."""

    name_or_path: Text | None = None
    revision: Text | None = None  #: resolved to a commit at first start and pinned for all attempts
    known_as: Text | None = None  #: what results call a local model; a submit that renames it keeps the name as written
    init_from: Text | None = None

    @field_validator("init_from")
    @classmethod
    def _names_a_point(cls, value: str | None) -> str | None:
        if value is not None:
            checkpoint_ref.CheckpointRef.parse(value)
        return value

    @model_validator(mode="after")
    def _one(self) -> "ModelSection":
        if (self.name_or_path is None) == (self.init_from is None):
            raise ValueError("give name_or_path or init_from, one of the two")
        if self.init_from is not None and self.revision is not None:
            raise ValueError("revision goes with name_or_path; init_from names the checkpoint itself, as in runs/x@120")
        return self


class DataSource(Section):
    """Rows to train or evaluate on: files (a path, a glob, hf://, s3://) or a generator of tasks."""

    path: Text | None = None
    weight: Annotated[Number, Field(gt=0)] = 1.0
    split: Text | None = None  #: of a data set on the Hub
    name: Text | None = None  #: its configuration
    revision: Text | None = None
    reasoning_gym: Text | None = None
    size: Annotated[Whole, Field(gt=0)] | None = None
    seed: Whole | None = None
    config: Free = Field(default_factory=dict)
    chat: Flag = False  #: generated tasks as messages, for a model with a chat template
    disjoint_from: Literal["train"] | None = None  #: of held-out rows: training passes over those

    @model_validator(mode="after")
    def _one(self) -> "DataSource":
        if (self.path is None) == (self.reasoning_gym is None):
            raise ValueError("give path or reasoning_gym, one of the two")
        said = [name for name in ("size", "seed", "config", "chat") if getattr(self, name)]
        if self.path is not None and said:
            raise ValueError(f"{' and '.join(said)} goes with reasoning_gym, not with path")
        return self


class Split(Section):
    """A part of the training rows held out, chosen by `seed`."""

    split: Annotated[Number, Field(gt=0, lt=1)]


Sources = Annotated[tuple[DataSource, ...], BeforeValidator(list_sources), Field(min_length=1)]


def _eval_kind(value: Any) -> str:
    if isinstance(value, Split) or (
        isinstance(value, Mapping) and "split" in value and not {"path", "reasoning_gym"} & set(value)
    ):
        return "~split"  # a tag beginning with ~ never shows in a mistake's path
    return "~sources"


class DataSection(Section):
    """The rows. `format: auto` looks at them; `columns` renames, old name to new; with `streaming` tokens are made of
    them as they are needed, not before.
    """

    train: Sources
    eval: (
        Annotated[Annotated[Split, Tag("~split")] | Annotated[Sources, Tag("~sources")], Discriminator(_eval_kind)]
        | None
    ) = None
    format: Literal[
        "auto", "text", "prompt_completion", "chat", "alpaca", "sharegpt", "preference", "unpaired_preference", "prompt"
    ] = "auto"
    columns: dict[Text, Text] = Field(default_factory=dict)
    streaming: Flag = False


class Nodes(Section):
    """How many hosts at once: exactly, or from `min` to `max`."""

    min: Annotated[Whole, Field(ge=1)] = 1
    max: Annotated[Whole, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> "Nodes":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


def _nodes(value: Any) -> Any:
    if isinstance(value, Mapping | Nodes):
        return value
    if (count := parse_whole(value)) < 1:
        raise ValueError("at least 1 is needed")
    return {"min": count, "max": count}


def _nodes_out(nodes: Nodes) -> int | dict[str, int]:
    return nodes.min if nodes.min == nodes.max else {"min": nodes.min, "max": nodes.max}


class ResourcesSection(Section):
    """What each host must have.

    A run takes `gpus_per_node` GPUs of each host. Where `require_cuda` is false a host without GPUs will do too and
    gives one CPU slot. Whoever writes a number of GPUs or an amount of VRAM means GPUs: `require_cuda` is then true
    unless told otherwise.
    """

    nodes: Annotated[Nodes, BeforeValidator(_nodes), PlainSerializer(_nodes_out)] = Nodes()
    gpus_per_node: Annotated[Whole, Field(ge=0, le=1024)] = 1
    vram_gib: Gib | None = None  #: per GPU, at least
    ram_gib: Gib | None = None
    disk_gib: Gib | None = None
    cpus: Annotated[Whole, Field(ge=1)] | None = None
    require_cuda: Flag = False
    labels: dict[Text, Text] = Field(default_factory=dict)  #: what the host's labels must say
    allowed_hosts: tuple[Text, ...] = ()
    prefer_hosts: tuple[Text, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _gpus_mean_cuda(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "require_cuda" in value:
            return value
        wanted = value.get("gpus_per_node") not in (None, 0) or value.get("vram_gib") is not None
        return {**value, "require_cuda": wanted}


class KeepSection(Section):
    """Which checkpoints stay: the last, the best and some in between; of those none too old and not too many bytes.

    Never fewer than resuming needs.
    """

    last: Annotated[Whole, Field(ge=1)] = 3
    best: Annotated[Whole, Field(ge=0)] = 0
    every: Interval | None = None
    metric: Text | None = None
    mode: Literal["min", "max"] = "min"
    max_age: Duration | None = None
    max_total: Size | None = None  #: bytes, each checkpoint counted once however many copies it has

    @model_validator(mode="after")
    def _best_needs_a_metric(self) -> "KeepSection":
        if self.best and not self.metric:
            raise ValueError("best needs a metric to compare by, for instance metric: eval_loss")
        return self


class CheckpointSection(Section):
    """How often to save, what to keep, and where."""

    every: Interval = Every(seconds=600.0)
    keep: KeepSection = KeepSection()
    store: Annotated[Text, Field(pattern=r"^(relay|file|s3|gs|az|hf)://")] = "relay://"
    layout: Literal["relay", "framework"] | None = None  #: None, as relay, also for agents that know no layouts

    @field_validator("store")
    @classmethod
    def _names_a_place(cls, store: str) -> str:
        if store.startswith("relay://") and store != "relay://":
            raise ValueError("the coordinator's own store is just relay://")
        if store.startswith("hf://") and not address.HUB_REPO.fullmatch(store.removeprefix("hf://")):
            raise ValueError("a store on the Hub is a repository: hf://owner/name")
        if not store.startswith(("relay://", "hf://")):
            address.parse_address(store)
        return store

    @model_validator(mode="after")
    def _a_layout_is_of_folders(self) -> "CheckpointSection":
        if self.layout == "framework" and self.store.startswith(("relay://", "hf://")):
            raise ValueError(f"layout: framework goes with file://, s3://, gs:// and az://, not with {self.store}")
        return self


class HubSection(Section):
    """Publishing to the Hugging Face Hub while the run goes on."""

    repo: Annotated[Text, Field(pattern=f"^{address.HUB_REPO.pattern}$")]
    every: Interval = Every(seconds=4 * 3600.0)
    push: Literal["adapter", "merged", "both"] = "adapter"  #: what of a LoRA run; a run of all weights pushes those
    private: Flag = True  #: of a repository that has to be made
    dry_run: Flag = False  #: nothing is sent; `hf/last_synced.json` says what would have been
    state: Flag = False  #: the whole trainer state of each checkpoint goes there too


class LifecycleSection(Section):
    """What happens when things go wrong."""

    on_disconnect: Literal["continue", "stop"] = "continue"
    max_attempts: Annotated[Whole, Field(ge=1, le=1000)] = (
        3  #: the run's own failures; infrastructure's faults are counted apart
    )
    max_runtime: Duration | None = None
    stall_after: StallAfter = "auto"
    on_oom: Literal["fail", "halve_micro_batch"] = "fail"


class Reward(Section):
    """One part of the reward: a built-in by name, a function of a file that travels (`file.py:function`) or of a module
    that is installed (`package.module:function`), or a reward model (a folder, or a name on the Hub).
    """

    name: Text | None = None
    call: Annotated[Text, Field(pattern=r"^([^:]+\.py:|[A-Za-z_]\w*(\.\w+)*[.:])[A-Za-z_]\w*$")] | None = None
    model: Text | None = None
    weight: Number = 1.0
    timeout: Duration | None = None  #: for a batch; the function then runs in a process of its own
    isolated: Flag = False  #: it does so without a timeout too
    config: Free = Field(default_factory=dict)  #: of a built-in

    @model_validator(mode="after")
    def _one(self) -> "Reward":
        if sum(each is not None for each in (self.name, self.call, self.model)) != 1:
            raise ValueError("give name, call or model, one of the three")
        if self.call is None and (self.timeout is not None or self.isolated):
            raise ValueError("timeout and isolated go with call")
        if self.name is None and self.config:
            raise ValueError("config goes with name; a function takes what it needs from the rows' columns")
        return self


class SamplesSection(Section):
    """Completions shown while a run goes on: of the first prompts at every evaluation, of RL the newest rollouts."""

    prompts: Annotated[Whole, Field(ge=1, le=64)] = 8  #: and rollouts, at once
    every: Annotated[Whole, Field(ge=1)] = 50  #: optimizer steps between rollouts; without data.eval, for prompts too
    max_new_tokens: Annotated[Whole, Field(ge=1, le=4096)] = 128  #: of a completion of a prompt


class Complete(Section):
    """When a folder is whole: renamed into place (neither key), or holding a marker file, or still for a while."""

    marker: Inside | None = None
    still_for: Duration | None = None

    @model_validator(mode="after")
    def _one(self) -> "Complete":
        if self.marker is not None and self.still_for is not None:
            raise ValueError("give marker or still_for, not both")
        return self


class AdoptCheckpoints(Section):
    """Folders that become checkpoints: their names, where they appear, and when they are whole."""

    pattern: Inside
    folder: Inside | None = None  #: relative to the working folder; without it the staging folder
    complete: Annotated[Complete, BeforeValidator(lambda value: {} if value == "renamed" else value)] = Complete()


class AdoptMetrics(Section):
    """Where a program that writes no events leaves its metrics."""

    source: Annotated[Literal["hf_log", "tensorboard", "trainer_state"], Field(alias="from")]


class AdoptSection(Section):
    """How a program that does not follow the contract is read."""

    checkpoints: AdoptCheckpoints | None = None
    metrics: AdoptMetrics | None = None


class Alert(Section):
    """Whom to tell of what."""

    url: Text
    events: tuple[Text, ...] = ()


METHODS = (
    "sft",
    "cpt",
    "dpo",
    "orpo",
    "cpo",
    "kto",
    "reward",
    "grpo",
    "rloo",
    "ppo",
    "gkd",
    "online_dpo",
    "distillation",
    "evaluate",
    "command",
)


class RunFile(Section):
    """One run, as submitted; `parse` and `load` make it."""

    version: Literal["relay/v1"] = "relay/v1"
    name: Name | None = None
    after: Text | None = None  #: `runs/x`: it waits until that one has succeeded
    labels: dict[Text, Annotated[str, Strict()]] = Field(default_factory=dict)
    priority: Annotated[Whole, Field(ge=-1000, le=1000)] = 0
    method: Text
    framework: Literal["hf", "nemo", "meta"] = "hf"
    model: ModelSection | None = None
    teacher: ModelSection | None = None  #: of gkd and distillation
    model_init: Free = Field(default_factory=dict)
    lora: Free | None = None
    quantization: Free | None = None
    preset: Annotated[
        tuple[Text, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = ()
    data: DataSection | None = None
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 42
    options: Free = Field(default_factory=dict)
    rewards: tuple[Reward, ...] = ()
    samples: SamplesSection | None = None
    image: Text | None = None
    command: tuple[Annotated[str, Strict()], ...] | None = None
    workdir: Inside = "."
    resume_args: tuple[Annotated[str, Strict()], ...] = ()
    adopt: AdoptSection | None = None
    outputs: tuple[Inside, ...] = ()
    files: tuple[Text, ...] = ()
    resources: ResourcesSection = ResourcesSection()
    launch: Free = Field(default_factory=dict)
    checkpoint: CheckpointSection = CheckpointSection()
    hub: HubSection | None = None
    lifecycle: LifecycleSection = LifecycleSection()
    env: Variables = Field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()
    trackers: dict[Text, Free] = Field(default_factory=dict)
    alerts: tuple[Alert, ...] = ()

    @field_validator("after")
    @classmethod
    def _names_a_run(cls, value: str | None) -> str | None:
        if value is not None and (point := checkpoint_ref.CheckpointRef.parse(value)).which:
            raise ValueError(f"it waits for a run as a whole: runs/{point.run}")
        return value

    def to_dict(self) -> dict[str, Any]:
        """The resolved run as plain values, defaults filled in; `parse` reads it back to an equal value."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_json(self) -> str:
        """`to_dict` as canonical JSON: the same run gives the same bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def digest(self) -> str:
        """`sha256:<hex>` of `to_json`."""
        return f"sha256:{hashlib.sha256(self.to_json().encode()).hexdigest()}"

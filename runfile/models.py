"""The run file as typed, frozen values, without their positions in a file.

Names under `options`, `model_init`, `lora` and `quantization` are the Hugging Face libraries'; all others are Relay's.
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
    """A mapping with known keys. Its validator is built when the first run file is read: many processes read none."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)


class ModelSection(Section):
    """The model to train: a name on the Hub, a folder, or another run's weights (which start a new curve)."""

    name_or_path: Text | None = None
    revision: Text | None = None  #: resolved to a commit at the first start and pinned for all attempts
    known_as: Text | None = (
        None  #: the name of a local model in results; kept as written when a submit renames the folder
    )
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
    """Rows to train or evaluate on: files (a path, a glob, hf://, s3://) or generated tasks."""

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
    disjoint_from: Literal["train"] | None = None  #: on held-out rows: training skips them

    @model_validator(mode="after")
    def _one(self) -> "DataSource":
        if (self.path is None) == (self.reasoning_gym is None):
            raise ValueError("give path or reasoning_gym, one of the two")
        said = [name for name in ("size", "seed", "config", "chat") if getattr(self, name)]
        if self.path is not None and said:
            raise ValueError(f"{' and '.join(said)} goes with reasoning_gym, not with path")
        return self


class Split(Section):
    """A share of the training rows that is held out, drawn with `seed`."""

    split: Annotated[Number, Field(gt=0, lt=1)]


Sources = Annotated[tuple[DataSource, ...], BeforeValidator(list_sources), Field(min_length=1)]


def _eval_kind(value: Any) -> str:
    if isinstance(value, Split) or (
        isinstance(value, Mapping) and "split" in value and not {"path", "reasoning_gym"} & set(value)
    ):
        return "~split"  # a tag beginning with ~ never shows in a mistake's path
    return "~sources"


class DataSection(Section):
    """The rows. `format: auto` detects their format; `columns` renames columns, old name to new.

    With `streaming`, rows are tokenized as they are needed and not in advance.
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
    """The number of hosts at once: exact, or from `min` to `max`."""

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

    A run takes `gpus_per_node` GPUs of each host. Where `require_cuda` is false, a host without GPUs is enough and
    gives one CPU slot. A number of GPUs or an amount of VRAM makes `require_cuda` true unless the run file sets it.
    """

    nodes: Annotated[Nodes, BeforeValidator(_nodes), PlainSerializer(_nodes_out)] = Nodes()
    gpus_per_node: Annotated[Whole, Field(ge=0, le=1024)] = 1
    vram_gib: Gib | None = None  #: per GPU, at least
    ram_gib: Gib | None = None
    disk_gib: Gib | None = None
    cpus: Annotated[Whole, Field(ge=1)] | None = None
    require_cuda: Flag = False
    labels: dict[Text, Text] = Field(default_factory=dict)  #: labels that the host must have
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
    """Which checkpoints are kept: the last, the best and some in between, up to an age and a total size.

    There are never fewer than resuming needs.
    """

    last: Annotated[Whole, Field(ge=1)] = 3
    best: Annotated[Whole, Field(ge=0)] = 0
    every: Interval | None = None
    metric: Text | None = None
    mode: Literal["min", "max"] = "min"
    max_age: Duration | None = None
    max_total: Size | None = None  #: bytes; each checkpoint counts once, however many copies it has

    @model_validator(mode="after")
    def _best_needs_a_metric(self) -> "KeepSection":
        if self.best and not self.metric:
            raise ValueError("best needs a metric to compare by, for instance metric: eval_loss")
        return self


class CheckpointSection(Section):
    """How often checkpoints are saved, which are kept, and where."""

    every: Interval = Every(seconds=600.0)
    keep: KeepSection = KeepSection()
    store: Annotated[Text, Field(pattern=r"^(relay|file|s3|gs|az|hf)://")] = "relay://"
    layout: Literal["relay", "framework"] | None = None  #: None is `relay`, also for agents of before layouts

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
    """Publication on the Hugging Face Hub while the run trains."""

    repo: Annotated[Text, Field(pattern=f"^{address.HUB_REPO.pattern}$")]
    every: Interval = Every(seconds=4 * 3600.0)
    push: Literal["adapter", "merged", "both"] = "adapter"  #: of a LoRA run; full training pushes all weights
    private: Flag = True  #: of a repository that is created
    dry_run: Flag = False  #: send nothing; `hf/last_synced.json` has what would be sent
    state: Flag = False  #: also store the whole trainer state of each checkpoint there


class LifecycleSection(Section):
    """What happens when a host or the run fails."""

    on_disconnect: Literal["continue", "stop"] = "continue"
    max_attempts: Annotated[Whole, Field(ge=1, le=1000)] = (
        3  #: the run's own failures; infrastructure's faults are counted apart
    )
    max_runtime: Duration | None = None
    stall_after: StallAfter = "auto"
    on_oom: Literal["fail", "halve_micro_batch"] = "fail"
    on_nan: Literal["stop", "continue"] = "stop"  #: at a loss, a gradient norm or weights that are not finite


class Reward(Section):
    """One part of the reward: a built-in, a function or a reward model.

    A function is in a file that is uploaded with the run (`file.py:function`) or in an installed module
    (`package.module:function`); a reward model is a folder or a name on the Hub.
    """

    name: Text | None = None
    call: Annotated[Text, Field(pattern=r"^([^:]+\.py:|[A-Za-z_]\w*(\.\w+)*[.:])[A-Za-z_]\w*$")] | None = None
    model: Text | None = None
    weight: Number = 1.0
    timeout: Duration | None = None  #: of a call for one batch; the function then runs in a process of its own
    isolated: Flag = False  #: run the function in a process of its own also without a timeout
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
    """Completions shown during training: of the first prompts at every evaluation, in RL the newest rollouts."""

    prompts: Annotated[Whole, Field(ge=1, le=64)] = 8  #: and rollouts, at once
    every: Annotated[Whole, Field(ge=1)] = 50  #: optimizer steps between rollouts; without data.eval, for prompts too
    max_new_tokens: Annotated[Whole, Field(ge=1, le=4096)] = 128  #: of a completion of a prompt


class Complete(Section):
    """When a folder is complete: renamed into place (neither key), with a marker file, or unchanged for a while."""

    marker: Inside | None = None
    still_for: Duration | None = None

    @model_validator(mode="after")
    def _one(self) -> "Complete":
        if self.marker is not None and self.still_for is not None:
            raise ValueError("give marker or still_for, not both")
        return self


class AdoptCheckpoints(Section):
    """Folders that become checkpoints: their names, where they appear, and when they are complete."""

    pattern: Inside
    folder: Inside | None = None  #: relative to the working folder; None is the staging folder
    complete: Annotated[Complete, BeforeValidator(lambda value: {} if value == "renamed" else value)] = Complete()


class AdoptMetrics(Section):
    """Where a program that writes no events writes its metrics."""

    source: Annotated[Literal["hf_log", "tensorboard", "trainer_state"], Field(alias="from")]


class AdoptSection(Section):
    """How checkpoints and metrics are read from a program that does not follow the contract."""

    checkpoints: AdoptCheckpoints | None = None
    metrics: AdoptMetrics | None = None


class Alert(Section):
    """A url that is notified of events."""

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
    """One run, as submitted; `parse_run_file` and `load_run_file` return it."""

    version: Literal["relay/v1"] = "relay/v1"
    name: Name | None = None
    after: Text | None = None  #: `runs/x`: the run waits until that one has succeeded
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
        """Return the resolved run as plain values with defaults; `parse_run_file` reads it back to an equal value."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_json(self) -> str:
        """Return canonical JSON of `to_dict`: equal runs give equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def digest(self) -> str:
        """Return the digest of `to_json`, as `sha256:<hex>`."""
        return f"sha256:{hashlib.sha256(self.to_json().encode()).hexdigest()}"

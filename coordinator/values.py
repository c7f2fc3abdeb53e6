"""The values that the rpc layer, the commands and the store exchange: frozen, without protobuf or SQL. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from coordinator.lifecycle import Cause, Outcome, Policy, StopReason


@dataclass(frozen=True, slots=True)
class HeldPlace:
    """A place of a lease that an agent's host still runs."""

    lease_id: UUID
    node: int
    phase: str
    slots: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that the agent's row stores."""
        return {"lease": str(self.lease_id), "node": self.node, "phase": self.phase, "slots": list(self.slots)}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether an agent accepts work, and why not."""

    ready: bool = True
    reason: str = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """An agent's introduction. `capability` is the contract's message as JSON values; `slots` are all slots of the
    host.
    """

    agent: str
    instance_id: str
    boot_id: str
    deployment_id: str
    capability: Mapping[str, Any]
    labels: Mapping[str, str]
    slots: tuple[int, ...]
    held: tuple[HeldPlace, ...]
    readiness: Readiness
    dial: int = 0  #: counts the hellos of an instance, from 1; 0 when it does not count


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """One heartbeat of one session. `readings` is None when it brought none."""

    agent: str
    session_id: UUID
    held: tuple[HeldPlace, ...]
    readiness: Readiness
    readings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LeasePlace:
    """The place of one node of a lease: an agent and slots of it."""

    node: int
    agent: str
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A verified copy of a checkpoint's part. `create_time` is epoch seconds, None before it is recorded."""

    store: str
    uri: str
    create_time: float | None = None
    remove_time: float | None = None  #: when it was scheduled for deletion


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One node's part of a checkpoint."""

    node: int
    manifest_digest: str
    size: int
    files: int
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointView:
    """A checkpoint with its parts and their copies. `create_time` is in seconds since the epoch."""

    id: UUID
    run_id: str
    lease_id: UUID
    attempt: int
    step: int
    metrics: Mapping[str, float]
    complete: bool
    superseded: bool
    head: bool
    create_time: float
    pinned: bool = False
    pin_reason: str = ""
    remove_time: float | None = None  #: when it was scheduled for deletion
    remove_reason: str = ""
    parts: tuple[Part, ...] = ()
    evaluation_due: bool = False  #: its evaluation has not been reported

    def without_removed_copies(self) -> CheckpointView:
        """Return the checkpoint with only those copies that are kept."""
        parts = (replace(part, copies=tuple(c for c in part.copies if c.remove_time is None)) for part in self.parts)
        return replace(self, parts=tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A copy that is scheduled for deletion."""

    checkpoint_id: UUID
    run_id: str
    lease_id: UUID
    attempt: int
    step: int
    node: int
    store: str
    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """All that a host needs to run its place of a lease."""

    spec: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    pins: Mapping[str, str]
    places: tuple[LeasePlace, ...]
    checkpoints: tuple[CheckpointView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredLease:
    """The desired state of one place. `stop` is None to run; `assignment` is set until the agent reports the lease as
    held.
    """

    lease_id: UUID
    run_id: str
    attempt: int
    node: int
    slots: tuple[int, ...]
    policy: Policy
    stop: StopReason | None
    grace: float  #: seconds that a stopping trainer has to save before it is killed
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The whole desired state of one agent. `session_id` is its session in the database, None without one."""

    agent: str
    session_id: UUID | None
    version: int
    leases: tuple[DesiredLease, ...]


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a source is stored, in bytes."""

    node: int
    source: str
    offset: int


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the coordinator has stored of a lease."""

    lease_id: UUID
    run_id: str
    started: bool
    cursors: tuple[Cursor, ...]
    checkpoints: tuple[CheckpointView, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that an attempt could not resume from."""

    checkpoint_id: UUID
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    """One node's part of a checkpoint to register. Every source must be stored up to its `required_cursors`."""

    node: int
    step: int
    manifest_digest: str
    size: int
    files: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    required_cursors: tuple[Cursor, ...] = ()
    copies: tuple[Copy, ...] = ()
    evaluation_due: bool = False  #: the weights of this step are still to be evaluated


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """How an attempt ended, as its agent reports it. `error` is {code, reason, message}; `digest` identifies the
    report.
    """

    node: int
    outcome: Outcome
    digest: str
    cause: Cause = Cause.REQUESTED
    permanent: bool = False
    error: Mapping[str, Any] | None = None
    output: Mapping[str, Any] | None = None
    final_cursors: tuple[Cursor, ...] = ()
    registered_step: int | None = None  #: the newest step that must be registered


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run to create. `spec` is the run file as it was sent; `inputs` are {path, digest, size, executable}."""

    run_id: str
    request_id: str
    spec: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, str]
    resume: bool = False
    validate_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedCheckpoint:
    """A checkpoint of a training that ran elsewhere. `time` is in seconds since the epoch, None for the time of the
    import.
    """

    step: int
    metrics: Mapping[str, float]
    manifest_digest: str
    size: int
    files: int
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """A training that ran elsewhere. `checkpoints` are ordered by step; `curve_digest` is empty without a curve."""

    submission: Submission
    checkpoints: tuple[ImportedCheckpoint, ...]
    curve_digest: str
    origin: str

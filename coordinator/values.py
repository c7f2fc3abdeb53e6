"""What travels between the wire, the commands and the store: frozen values, without protobuf and without SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from coordinator.lifecycle import Cause, Outcome, Policy, StopReason


@dataclass(frozen=True, slots=True)
class HeldPlace:
    """A lease that an agent's host still runs."""

    lease_id: UUID
    node: int
    phase: str
    slots: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As the agent's row keeps it."""
        return {"lease": str(self.lease_id), "node": self.node, "phase": self.phase, "slots": list(self.slots)}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether an agent takes work, and why not."""

    ready: bool = True
    reason: str = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who is calling. `capability` is the contract's message as plain values; `slots` are all that the host has."""

    agent: str
    instance_id: str
    boot_id: str
    deployment_id: str
    capability: Mapping[str, Any]
    labels: Mapping[str, str]
    slots: tuple[int, ...]
    held: tuple[HeldPlace, ...]
    readiness: Readiness
    dial: int = 0  #: numbers the hellos of an instance, from 1; 0 when it does not count


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
    """One node's place of a lease."""

    node: int
    agent: str
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A verified copy of a checkpoint's part. `create_time` is epoch seconds, None before it is recorded."""

    store: str
    uri: str
    create_time: float | None = None
    remove_time: float | None = None  #: since when it is being removed


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
    """A checkpoint with its parts and their copies. `create_time` is epoch seconds."""

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
    remove_time: float | None = None  #: since when it has been let go
    remove_reason: str = ""
    parts: tuple[Part, ...] = ()

    def without_removed_copies(self) -> CheckpointView:
        """With those copies only that are there to stay."""
        parts = (replace(part, copies=tuple(c for c in part.copies if c.remove_time is None)) for part in self.parts)
        return replace(self, parts=tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A copy that is to go."""

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
    """What is wished of one place. `stop` is None to run; `assignment` is there until the agent reports the lease."""

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
    """The whole wish of one agent. `session_id` is the session that the database has for it, None when it has none."""

    agent: str
    session_id: UUID | None
    version: int
    leases: tuple[DesiredLease, ...]


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a source is, in bytes."""

    node: int
    source: str
    offset: int


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the coordinator has of a lease."""

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
    """One node's part of a checkpoint, to be registered. `after` are cursors that must have been passed."""

    node: int
    step: int
    manifest_digest: str
    size: int
    files: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    required_cursors: tuple[Cursor, ...] = ()
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """How an attempt ended, as its agent reports it. `error` is {code, reason, message}, `digest` names the report."""

    node: int
    outcome: Outcome
    digest: str
    cause: Cause = Cause.REQUESTED
    permanent: bool = False
    error: Mapping[str, Any] | None = None
    output: Mapping[str, Any] | None = None
    final_cursors: tuple[Cursor, ...] = ()
    registered_step: int | None = None  #: the newest that must be in the registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run to be created. `spec` as it was sent; `inputs` are {path, digest, size, executable}."""

    run_id: str
    request_id: str
    spec: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, str]
    resume: bool = False
    validate_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedCheckpoint:
    """A checkpoint of a training that ran elsewhere. `time` is epoch seconds, None for now."""

    step: int
    metrics: Mapping[str, float]
    manifest_digest: str
    size: int
    files: int
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """A training that ran elsewhere; `checkpoints` by step, `curve_digest` empty where there is none."""

    submission: Submission
    checkpoints: tuple[ImportedCheckpoint, ...]
    curve_digest: str
    origin: str

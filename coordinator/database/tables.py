"""The tables, and the invariants that the database itself enforces.

The names of runs and agents are their keys. Every write of an agent is checked against its lease's random id (S1, S2);
the attempt number is for display. No state is changed by hand: `lifecycle` decides the transitions and `store` writes
them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: The migration that makes these tables.
REVISION = "0008"

_CLOCK = func.clock_timestamp()
_EMPTY = text("'{}'::jsonb")


class Base(DeclarativeBase):
    """The base of all tables. Its naming convention keeps Alembic from inventing names."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger,
        str: Text,
        float: Double,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        UUID: Uuid,
        dict[str, Any]: JSONB,
        list[int]: ARRAY(BigInteger),
        list[float]: ARRAY(Double),
        list[str]: ARRAY(Text),
    }


class Deployment(Base):
    """The one row of a deployment: which database it is on, and when the reaper last looked."""

    __tablename__ = "deployment"
    only: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    deployment_id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    system_identifier: Mapped[str | None]  #: of the Postgres cluster; null only where it was emptied on purpose
    database_oid: Mapped[int | None]
    timeline: Mapped[int | None]  #: raised by a promotion
    reaper_tick: Mapped[datetime | None]  #: a gap in it is an outage
    lapses_after: Mapped[datetime | None]  #: outage grace: nothing lapses before this
    stop_grants_after: Mapped[datetime | None]  #: no `stop` run is granted before this (failover, restore)
    __table_args__ = (CheckConstraint('"only"', name="one_row"),)


class Run(Base):
    """One training run: one run file, one curve, one head."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]  #: lifecycle.RunState
    wanted: Mapped[str]  #: lifecycle.Wanted
    spec: Mapped[dict[str, Any]]  #: the resolved run file
    inputs: Mapped[dict[str, Any]] = mapped_column(
        server_default=text("'[]'::jsonb")
    )  #: list of {path, digest, size, executable}
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    priority: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    request_digest: Mapped[str]  #: of the last requested spec and inputs: shows whether a resume changes them
    provenance: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    create_time: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    update_time: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    end_time: Mapped[datetime | None]
    eligible_time: Mapped[datetime | None]  #: the run is not granted before
    waits_for: Mapped[str | None] = mapped_column(
        ForeignKey("runs.id")
    )  #: the run is not granted until that one has succeeded
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    faults: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    head_id: Mapped[UUID | None] = mapped_column(ForeignKey("checkpoints.id", use_alter=True))
    step: Mapped[int] = mapped_column(server_default=text("0"))  #: last reported progress on the curve
    total: Mapped[int] = mapped_column(server_default=text("0"))
    epoch: Mapped[float | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)  #: newest value of each
    progress_time: Mapped[datetime | None]
    pins: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    output: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]  #: {code, reason, message}
    reason: Mapped[str] = mapped_column(server_default=text("''"))  #: why it is in its state, for users
    event_sequence: Mapped[int] = mapped_column(server_default=text("0"))  #: of its newest run_event
    __table_args__ = (
        Index(
            "runs_claimable",
            text("priority DESC"),
            "create_time",
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
        Index("runs_newest", text("create_time DESC"), "id"),
        Index("runs_that_wait", "waits_for", postgresql_where=text("waits_for IS NOT NULL")),
    )


class Request(Base):
    """A submission that was carried out, by its request id. It is inserted before its run, which the commit checks."""

    __tablename__ = "requests"
    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(
        ForeignKey("runs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), index=True
    )
    digest: Mapped[str]  #: of spec and inputs: distinguishes a repeated request from a reused id
    create_time: Mapped[datetime] = mapped_column(server_default=_CLOCK)


class Lease(Base):
    """The right of one agent (or gang) to run one attempt. At most one lease of a run has not ended."""

    __tablename__ = "leases"
    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    state: Mapped[str]  #: lifecycle.LeaseState
    policy: Mapped[str]  #: `continue` or `stop`
    stop_reason: Mapped[str | None]  #: lifecycle.StopReason, which only gets stronger
    grant_time: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    start_time: Mapped[datetime | None]  #: of StartAttempt
    end_time: Mapped[datetime | None]
    outcome: Mapped[str | None]  #: lifecycle.Outcome
    reason: Mapped[str] = mapped_column(server_default=text("''"))
    error: Mapped[dict[str, Any] | None]
    completion: Mapped[dict[str, Any] | None]  #: the report of CompleteLease, so that a repetition is recognised
    resumed_from: Mapped[UUID | None]
    resumed_step: Mapped[int] = mapped_column(server_default=text("0"))
    skipped: Mapped[dict[str, Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    fidelity: Mapped[str | None]  #: how exactly it resumed, as the trainer reports: exact, close or changed
    fidelity_reasons: Mapped[dict[str, Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    kept_until_step: Mapped[int | None]  #: later points are superseded; null: none are
    __table_args__ = (
        Index("one_unended_lease_per_run", "run_id", unique=True, postgresql_where=text("end_time IS NULL")),
        Index("leases_of_run", "run_id", "attempt"),
    )


class Place(Base):
    """One node's place of a lease, renewed on its own. `expire_time` has no index: renewals are HOT updates."""

    __tablename__ = "places"
    lease_id: Mapped[UUID] = mapped_column(ForeignKey("leases.id", ondelete="CASCADE"), primary_key=True)
    node: Mapped[int] = mapped_column(Integer, primary_key=True)
    agent: Mapped[str] = mapped_column(ForeignKey("agents.name"))
    session_id: Mapped[UUID]  #: the agent's session it was granted to, or that renewed it last
    boot_id: Mapped[str]  #: of the host when it was granted: under `stop` another boot proves nothing
    slots: Mapped[list[int]]
    expire_time: Mapped[datetime]
    reported: Mapped[bool] = mapped_column(server_default=text("false"))  #: the agent has listed it in `held` once
    end_time: Mapped[datetime | None]  #: with the lease's
    __table_args__ = (
        Index("places_of_agent", "agent", postgresql_where=text("end_time IS NULL")),
        {"postgresql_with": {"fillfactor": 50}},
    )


class TakenSlot(Base):
    """A slot that an unended lease has: it cannot be granted twice (S9). The row is deleted when the lease ends."""

    __tablename__ = "taken_slots"
    agent: Mapped[str] = mapped_column(ForeignKey("agents.name"), primary_key=True)
    slot: Mapped[int] = mapped_column(Integer, primary_key=True)
    lease_id: Mapped[UUID] = mapped_column(ForeignKey("leases.id", ondelete="CASCADE"), index=True)
    node: Mapped[int] = mapped_column(Integer)


class Agent(Base):
    """A host, as of its last session."""

    __tablename__ = "agents"
    name: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[UUID | None]  #: every renewal compares it; null: no session
    instance_id: Mapped[str]
    dial: Mapped[int] = mapped_column(server_default=text("0"))  #: of the instance's newest hello
    boot_id: Mapped[str]
    retired_instances: Mapped[list[str]] = mapped_column(
        server_default=text("'{}'")
    )  #: replaced instances, which are refused
    wish_version: Mapped[int] = mapped_column(server_default=text("0"))  #: of the desired state
    capability: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    slots: Mapped[list[int]] = mapped_column(server_default=text("'{}'"))  #: all slots of the host
    ready: Mapped[bool] = mapped_column(server_default=text("false"))
    leaving: Mapped[bool] = mapped_column(server_default=text("false"))
    readiness_reason: Mapped[str] = mapped_column(server_default=text("''"))
    held: Mapped[dict[str, Any]] = mapped_column(
        server_default=text("'[]'::jsonb")
    )  #: of the last heartbeat: [{lease, node, phase, slots}]
    readings: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    connect_time: Mapped[datetime | None]
    disconnect_time: Mapped[datetime | None]  #: when the stream ended; null while it is open
    heartbeat_time: Mapped[datetime | None]
    __table_args__ = ({"postgresql_with": {"fillfactor": 50}},)


class Cursor(Base):
    """How far a source is stored. It moves in the transaction that stores the bytes, so each is stored once (S7)."""

    __tablename__ = "cursors"
    lease_id: Mapped[UUID] = mapped_column(ForeignKey("leases.id", ondelete="CASCADE"), primary_key=True)
    node: Mapped[int] = mapped_column(Integer, primary_key=True)
    source: Mapped[str] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column("offset_bytes", server_default=text("0"))
    dropped: Mapped[int] = mapped_column(server_default=text("0"))  #: number of lines that were dropped
    __table_args__ = ({"postgresql_with": {"fillfactor": 50}},)


class MetricChunk(Base):
    """Consecutive points of one metric, stored as columns because points are many and small."""

    __tablename__ = "metric_chunks"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    lease_id: Mapped[UUID] = mapped_column(ForeignKey("leases.id", ondelete="CASCADE"))
    metric: Mapped[str]
    steps: Mapped[list[int]]
    values: Mapped[list[float]] = mapped_column("points")
    times: Mapped[list[float]]  #: seconds since the epoch, by the trainer's clock
    __table_args__ = (Index("metric_chunks_of_run", "run_id", "metric", "id"),)


class Sample(Base):
    """A completion that the trainer reported: of a fixed prompt, or a rollout with its rewards."""

    __tablename__ = "samples"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    lease_id: Mapped[UUID] = mapped_column(ForeignKey("leases.id", ondelete="CASCADE"))
    step: Mapped[int]
    kind: Mapped[str]  #: `prompt` or `rollout`
    prompt: Mapped[str]
    completion: Mapped[str]
    rewards: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    time: Mapped[float]  #: seconds since the epoch, by the trainer's clock
    __table_args__ = (Index("samples_of_run", "run_id", "id"),)


class LogChunk(Base):
    """A byte range of stdout or stderr."""

    __tablename__ = "log_chunks"
    id: Mapped[int] = mapped_column(primary_key=True)
    lease_id: Mapped[UUID] = mapped_column(ForeignKey("leases.id", ondelete="CASCADE"))
    node: Mapped[int] = mapped_column(Integer)
    source: Mapped[str]
    offset: Mapped[int] = mapped_column("offset_bytes")
    data: Mapped[bytes]
    time: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    __table_args__ = (Index("log_chunks_of_lease", "lease_id", "id"),)


class RunEvent(Base):
    """One event of a run's history, numbered per run without gaps, so that watchers continue by sequence."""

    __tablename__ = "run_events"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    kind: Mapped[str]  #: RunEvent.Kind of the contract, in lower case
    lease_id: Mapped[UUID | None]
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    message: Mapped[str] = mapped_column(server_default=text("''"))  #: for users
    level: Mapped[str] = mapped_column(server_default=text("'info'"))
    details: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    state: Mapped[str]  #: of the run, after it


class Checkpoint(Base):
    """A saved state to resume from. Ordered by (attempt, step); at most one per lease and step."""

    __tablename__ = "checkpoints"
    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    lease_id: Mapped[UUID] = mapped_column(ForeignKey("leases.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    step: Mapped[int]
    metrics: Mapped[dict[str, Any]] = mapped_column(server_default=_EMPTY)
    evaluation_due: Mapped[bool] = mapped_column(server_default=text("false"))  #: it has not been reported
    complete: Mapped[bool] = mapped_column(server_default=text("false"))
    superseded: Mapped[bool] = mapped_column(server_default=text("false"))
    create_time: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    pinned: Mapped[bool] = mapped_column(server_default=text("false"))  #: by a user
    pin_reason: Mapped[str] = mapped_column(server_default=text("''"))
    remove_time: Mapped[datetime | None]  #: when it was scheduled for deletion, which is final
    remove_reason: Mapped[str] = mapped_column(server_default=text("''"))
    __table_args__ = (
        UniqueConstraint("lease_id", "step"),
        Index("checkpoints_of_run", "run_id", "attempt", "step"),
        Index("checkpoints_kept", "run_id", postgresql_where=text("remove_time IS NULL")),
    )


class CheckpointPart(Base):
    """One node's part of a checkpoint."""

    __tablename__ = "checkpoint_parts"
    checkpoint_id: Mapped[UUID] = mapped_column(ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True)
    node: Mapped[int] = mapped_column(Integer, primary_key=True)
    manifest_digest: Mapped[str]
    size: Mapped[int]
    files: Mapped[int]


class CheckpointCopy(Base):
    """A verified copy of a checkpoint's part."""

    __tablename__ = "checkpoint_copies"
    checkpoint_id: Mapped[UUID] = mapped_column(primary_key=True)
    node: Mapped[int] = mapped_column(Integer, primary_key=True)
    uri: Mapped[str] = mapped_column(primary_key=True)
    store: Mapped[str]
    create_time: Mapped[datetime] = mapped_column(server_default=_CLOCK)
    remove_time: Mapped[datetime | None]  #: when it was scheduled for deletion; then the row is deleted
    __table_args__ = (
        Index("copies_to_remove", "uri", postgresql_where=text("remove_time IS NOT NULL")),
        ForeignKeyConstraint(
            ["checkpoint_id", "node"], ["checkpoint_parts.checkpoint_id", "checkpoint_parts.node"], ondelete="CASCADE"
        ),
    )

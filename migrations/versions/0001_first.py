"""The first schema."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

HOT: dict[str, Any] = {"postgresql_with": {"fillfactor": 50}}  # rows that are updated all the time stay on their page


def _column(name: str, kind: Any, default: str | None = None, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, server_default=None if default is None else sa.text(default), nullable=null)


def _text(name: str, default: str | None = None, null: bool = False) -> sa.Column[Any]:
    return _column(name, sa.Text(), default, null)


def _int(name: str, default: str | None = None, null: bool = False) -> sa.Column[Any]:
    return _column(name, sa.Integer(), default, null)


def _bigint(name: str, default: str | None = None, null: bool = False) -> sa.Column[Any]:
    return _column(name, sa.BigInteger(), default, null)


def _uuid(name: str, default: str | None = None, null: bool = False) -> sa.Column[Any]:
    return _column(name, sa.Uuid(), default, null)


def _bool(name: str, default: str | None = None) -> sa.Column[Any]:
    return _column(name, sa.Boolean(), default)


def _json(name: str, default: str | None = "{}", null: bool = False) -> sa.Column[Any]:
    return _column(name, postgresql.JSONB(), None if default is None else f"'{default}'::jsonb", null)


def _array(name: str, kind: Any, default: str | None = None) -> sa.Column[Any]:
    return _column(name, sa.ARRAY(kind), default)


def _time(name: str, now: bool = False) -> sa.Column[Any]:
    """Unset until it is set, or (with `now`) when the row was made."""
    return _column(name, sa.DateTime(timezone=True), "clock_timestamp()" if now else None, null=not now)


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"{table}_pkey")


def _part_of(table: str, column: str, parent: str, cascade: bool = True) -> sa.ForeignKeyConstraint:
    """A foreign key; with `cascade` rows go with their parent."""
    return sa.ForeignKeyConstraint(
        [column], [parent], name=f"{table}_{column}_fkey", ondelete="CASCADE" if cascade else None
    )


def upgrade() -> None:
    _deployment()
    _agents()
    _runs()
    _leases()
    _places()
    _history()
    _sources()
    _checkpoints()


def _deployment() -> None:
    op.create_table(
        "deployment",
        _bool("only", "true"),
        _uuid("deployment_id", "gen_random_uuid()"),
        _text("system_identifier", null=True),
        _bigint("database_oid", null=True),
        _bigint("timeline", null=True),
        _time("reaper_tick"),
        _time("lapses_after"),
        _time("stop_grants_after"),
        sa.CheckConstraint('"only"', name=op.f("deployment_one_row_check")),
        _key("deployment", "only"),
    )
    op.execute("INSERT INTO deployment DEFAULT VALUES")


def _agents() -> None:
    op.create_table(
        "agents",
        _text("name"),
        _uuid("session_id", null=True),
        _text("instance_id"),
        _text("boot_id"),
        _array("retired_instances", sa.Text(), "'{}'"),
        _bigint("wish_version", "0"),
        _json("capability"),
        _json("labels"),
        _array("slots", sa.BigInteger(), "'{}'"),
        _bool("ready", "false"),
        _bool("leaving", "false"),
        _text("readiness_reason", "''"),
        _json("held", "[]"),
        _json("readings"),
        _time("connect_time"),
        _time("disconnect_time"),
        _time("heartbeat_time"),
        _key("agents", "name"),
        **HOT,
    )


def _runs() -> None:
    op.create_table(
        "runs",
        _text("id"),
        _text("state"),
        _text("wanted"),
        _json("spec", None),
        _json("inputs", "[]"),
        _json("labels"),
        _int("priority", "0"),
        _text("request_digest"),
        _json("provenance"),
        _time("create_time", now=True),
        _time("update_time", now=True),
        _time("end_time"),
        _time("eligible_time"),
        _int("failures", "0"),
        _int("faults", "0"),
        _int("attempts", "0"),
        _uuid("head_id", null=True),
        _bigint("step", "0"),
        _bigint("total", "0"),
        _column("epoch", sa.Double(), null=True),
        _json("metrics"),
        _time("progress_time"),
        _json("pins"),
        _json("output", None, null=True),
        _json("error", None, null=True),
        _text("reason", "''"),
        _bigint("event_sequence", "0"),
        _key("runs", "id"),
    )
    claimable = sa.text("state IN ('queued', 'running')")
    op.create_index("runs_claimable", "runs", [sa.text("priority DESC"), "create_time"], postgresql_where=claimable)
    op.create_index("runs_newest", "runs", [sa.text("create_time DESC"), "id"])
    op.create_table(
        "requests",
        _text("id"),
        _text("run_id"),
        _text("digest"),
        _time("create_time", now=True),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["runs.id"],
            name="requests_run_id_fkey",
            ondelete="CASCADE",
            deferrable=True,
            initially="DEFERRED",
        ),
        _key("requests", "id"),
    )
    op.create_index("requests_run_id_idx", "requests", ["run_id"])


def _leases() -> None:
    op.create_table(
        "leases",
        _uuid("id", "gen_random_uuid()"),
        _text("run_id"),
        _int("attempt"),
        _text("state"),
        _text("policy"),
        _text("stop_reason", null=True),
        _time("grant_time", now=True),
        _time("start_time"),
        _time("end_time"),
        _text("outcome", null=True),
        _text("reason", "''"),
        _json("error", None, null=True),
        _json("completion", None, null=True),
        _uuid("resumed_from", null=True),
        _bigint("resumed_step", "0"),
        _json("skipped", "[]"),
        _bigint("kept_until_step", null=True),
        _part_of("leases", "run_id", "runs.id"),
        _key("leases", "id"),
    )
    unended = sa.text("end_time IS NULL")
    op.create_index("one_unended_lease_per_run", "leases", ["run_id"], unique=True, postgresql_where=unended)
    op.create_index("leases_of_run", "leases", ["run_id", "attempt"])


def _places() -> None:
    op.create_table(
        "places",
        _uuid("lease_id"),
        _int("node"),
        _text("agent"),
        _uuid("session_id"),
        _text("boot_id"),
        _array("slots", sa.BigInteger()),
        _column("expire_time", sa.DateTime(timezone=True)),
        _bool("reported", "false"),
        _time("end_time"),
        _part_of("places", "agent", "agents.name", cascade=False),
        _part_of("places", "lease_id", "leases.id"),
        _key("places", "lease_id", "node"),
        **HOT,
    )
    op.create_index("places_of_agent", "places", ["agent"], postgresql_where=sa.text("end_time IS NULL"))
    op.create_table(
        "taken_slots",
        _text("agent"),
        _int("slot"),
        _uuid("lease_id"),
        _int("node"),
        _part_of("taken_slots", "agent", "agents.name", cascade=False),
        _part_of("taken_slots", "lease_id", "leases.id"),
        _key("taken_slots", "agent", "slot"),
    )
    op.create_index("taken_slots_lease_id_idx", "taken_slots", ["lease_id"])


def _history() -> None:
    op.create_table(
        "run_events",
        _text("run_id"),
        _bigint("sequence"),
        _time("time", now=True),
        _text("kind"),
        _uuid("lease_id", null=True),
        _int("attempt", "0"),
        _text("message", "''"),
        _text("level", "'info'"),
        _json("details"),
        _text("state"),
        _part_of("run_events", "run_id", "runs.id"),
        _key("run_events", "run_id", "sequence"),
    )


def _sources() -> None:
    op.create_table(
        "cursors",
        _uuid("lease_id"),
        _int("node"),
        _text("source"),
        _bigint("offset_bytes", "0"),
        _bigint("dropped", "0"),
        _part_of("cursors", "lease_id", "leases.id"),
        _key("cursors", "lease_id", "node", "source"),
        **HOT,
    )
    op.create_table(
        "metric_chunks",
        _bigint("id"),
        _text("run_id"),
        _uuid("lease_id"),
        _text("metric"),
        _array("steps", sa.BigInteger()),
        _array("points", sa.Double()),
        _array("times", sa.Double()),
        _part_of("metric_chunks", "lease_id", "leases.id"),
        _part_of("metric_chunks", "run_id", "runs.id"),
        _key("metric_chunks", "id"),
    )
    op.create_index("metric_chunks_of_run", "metric_chunks", ["run_id", "metric", "id"])
    op.create_table(
        "log_chunks",
        _bigint("id"),
        _uuid("lease_id"),
        _int("node"),
        _text("source"),
        _bigint("offset_bytes"),
        _column("data", sa.LargeBinary()),
        _time("time", now=True),
        _part_of("log_chunks", "lease_id", "leases.id"),
        _key("log_chunks", "id"),
    )
    op.create_index("log_chunks_of_lease", "log_chunks", ["lease_id", "id"])


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        _uuid("id", "gen_random_uuid()"),
        _text("run_id"),
        _uuid("lease_id"),
        _int("attempt"),
        _bigint("step"),
        _json("metrics"),
        _bool("complete", "false"),
        _bool("superseded", "false"),
        _time("create_time", now=True),
        _part_of("checkpoints", "lease_id", "leases.id"),
        _part_of("checkpoints", "run_id", "runs.id"),
        _key("checkpoints", "id"),
        sa.UniqueConstraint("lease_id", "step", name="checkpoints_lease_id_step_key"),
    )
    op.create_index("checkpoints_of_run", "checkpoints", ["run_id", "attempt", "step"])
    op.create_foreign_key("runs_head_id_fkey", "runs", "checkpoints", ["head_id"], ["id"])
    op.create_table(
        "checkpoint_parts",
        _uuid("checkpoint_id"),
        _int("node"),
        _text("manifest_digest"),
        _bigint("size"),
        _bigint("files"),
        _part_of("checkpoint_parts", "checkpoint_id", "checkpoints.id"),
        _key("checkpoint_parts", "checkpoint_id", "node"),
    )
    op.create_table(
        "checkpoint_copies",
        _uuid("checkpoint_id"),
        _int("node"),
        _text("uri"),
        _text("store"),
        _time("create_time", now=True),
        sa.ForeignKeyConstraint(
            ["checkpoint_id", "node"],
            ["checkpoint_parts.checkpoint_id", "checkpoint_parts.node"],
            name="checkpoint_copies_checkpoint_id_node_fkey",
            ondelete="CASCADE",
        ),
        _key("checkpoint_copies", "checkpoint_id", "node", "uri"),
    )


def downgrade() -> None:
    op.drop_constraint("runs_head_id_fkey", "runs")
    for table in ("checkpoint_copies", "checkpoint_parts", "checkpoints", "log_chunks", "metric_chunks", "cursors"):
        op.drop_table(table)
    for table in ("run_events", "taken_slots", "places", "leases", "requests", "runs", "agents", "deployment"):
        op.drop_table(table)

"""What the history checker reads: what a deployment recorded, and what was truly done.

`Recorded` is rows by table, named as in Postgres; a caller that keeps other tables (a simulator's dicts) passes the
same. A `Witness` knows nothing from the coordinator: trainers, hosts' disks and the injectors of faults fill it. Ids
may be UUIDs or text, times datetimes or seconds: the checker compares them only with each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

Row = Mapping[str, Any]
Recorded = Mapping[str, Sequence[Row]]
Source = tuple[str, int, str]  #: lease, node, name

TABLES = (
    *("deployment", "runs", "requests", "leases", "places", "taken_slots", "agents", "cursors", "metric_chunks"),
    *("log_chunks", "run_events", "checkpoints", "checkpoint_parts", "checkpoint_copies"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A trainer did a step, and this is what came of it."""

    run: str
    lease: str
    step: int
    value: float | None = None
    metric: str = "train_loss"


@dataclass(frozen=True, slots=True)
class Execution:
    """A trainer ran from `began` to `ended`, on one clock for all hosts."""

    run: str
    lease: str
    policy: str
    host: str
    began: float
    ended: float = math.inf
    node: int = 0
    slots: tuple[int, ...] = ()
    excused: bool = False  #: what S3 assumes did not hold: its host was frozen, or its clock ran wild


@dataclass(frozen=True, slots=True)
class Signal:
    """A directive reached a trainer."""

    lease: str
    name: str
    node: int = 0


@dataclass(frozen=True, slots=True)
class Witness:
    """What was truly done. What no one has seen is left empty, and not judged."""

    steps: Sequence[Step] = ()
    executions: Sequence[Execution] = ()
    signals: Sequence[Signal] = ()
    files: Mapping[Source, bytes] = field(default_factory=dict)  #: each source as it lies on its host
    submitted: Mapping[str, str] = field(default_factory=dict)  #: run by request id, as answered to the submitter
    steady: bool = True  #: no clock was set meanwhile, and all hosts share the database's


async def recorded(database_url: str) -> Recorded:
    """Everything in one snapshot."""
    connection = await asyncpg.connect(database_url)
    try:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return {table: await _rows(connection, table) for table in TABLES}
    finally:
        await connection.close()


async def _rows(connection: asyncpg.Connection, table: str) -> list[Row]:
    return [dict(row) for row in await connection.fetch(f"SELECT * FROM {table}")]

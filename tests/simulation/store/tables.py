"""The tables of the simulated database, with the columns, defaults and unique indexes of `coordinator.database.tables`.

A row is a dict by column name that is never modified: a write replaces it by another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

import sqlalchemy

from coordinator.database.connections import make_storable_text
from coordinator.database.tables import Base

Row = Mapping[str, Any]
Key = Any  #: of a row: its primary key, a tuple where that has several columns


@dataclass(frozen=True, slots=True)
class Sources:
    """What defaults come from."""

    now: Callable[[], datetime]
    new_id: Callable[[], UUID]


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique index beside the primary key. `partial`: only rows that have not ended count."""

    name: str
    columns: tuple[str, ...]
    partial: bool

    def value(self, row: Row | None) -> Any:
        """What may be there once; None when the row is not in the index."""
        if row is None or (self.partial and row["end_time"] is not None):
            return None
        return tuple(row[column] for column in self.columns)


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of one table."""

    name: str
    key: Callable[[Row], Key]
    uniques: tuple[Unique, ...]
    numbered: bool  #: its key counts up by itself
    constants: Mapping[str, Any]  #: defaults that are values, shared: rows are not changed
    times: tuple[str, ...]  #: columns whose default is the time
    ids: tuple[str, ...]  #: columns whose default is a random id

    def row(self, values: Row, sources: Sources) -> dict[str, Any]:
        """A new row: the values, and defaults for the rest."""
        row = {**self.constants, **values}
        for column in self.times:
            if column not in values:
                row[column] = sources.now()
        for column in self.ids:
            if column not in values:
                row[column] = sources.new_id()
        return row


#: Defaults as the tables write them.
_CONSTANTS: Mapping[str, Any] = {
    "'{}'::jsonb": {}, "'[]'::jsonb": [], "'{}'": [], "''": "", "'info'": "info", "0": 0, "true": True, "false": False
}  # fmt: skip


def _table(table: sqlalchemy.Table) -> Table:
    keys = tuple(column.name for column in table.primary_key.columns)
    constants: dict[str, Any] = {}
    drawn: dict[str, list[str]] = {"clock_timestamp()": [], "gen_random_uuid()": []}
    for column in table.columns:
        default = str(column.server_default.arg) if column.server_default is not None else None  # type: ignore[attr-defined]
        if default in drawn:
            drawn[default].append(column.name)
        else:
            constants[column.name] = None if default is None else _CONSTANTS[default]
    return Table(
        name=table.name,
        key=itemgetter(*keys),
        uniques=tuple(_uniques(table)),
        numbered=keys == ("id",) and isinstance(table.columns["id"].type, sqlalchemy.BigInteger),
        constants=constants,
        times=tuple(drawn["clock_timestamp()"]),
        ids=tuple(drawn["gen_random_uuid()"]),
    )


def _uniques(table: sqlalchemy.Table) -> list[Unique]:
    found = []
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        if index.unique:
            where = index.dialect_options["postgresql"]["where"]
            assert where is None or str(where) == "end_time IS NULL"
            found.append(Unique(str(index.name), tuple(index.columns.keys()), where is not None))
    for constraint in table.constraints:
        if isinstance(constraint, sqlalchemy.UniqueConstraint):
            columns = tuple(column.name for column in constraint.columns)
            found.append(Unique(f"{table.name}_{columns[0]}_key", columns, False))
    return found


TABLES: Mapping[str, Table] = {table.name: _table(table) for table in Base.metadata.sorted_tables}

#: Columns that rows are looked up by; a row's never change while it is there.
LOOKED_UP: Mapping[str, tuple[str, ...]] = {
    "leases": ("run_id",),
    "places": ("lease_id", "agent"),
    "taken_slots": ("agent", "lease_id"),
    "cursors": ("lease_id",),
    "metric_chunks": ("lease_id",),
    "checkpoints": ("run_id", "lease_id"),
    "checkpoint_parts": ("checkpoint_id",),
    "checkpoint_copies": ("checkpoint_id",),
}


def jsonb(value: Any) -> Any:
    """A value as a jsonb column gives it back."""
    match value:
        case str():
            return make_storable_text(value)
        case float() if not math.isfinite(value):
            return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        case dict():
            return {make_storable_text(str(key)): jsonb(item) for key, item in value.items()}
        case list() | tuple():
            return [jsonb(item) for item in value]
    return value

"""A recorded history as the rules read it: ids as text, and everything of a run together and in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tests.history.record import Recorded, Row, Source, Witness


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    property: str  #: S1 to S10
    run: str  #: empty when it concerns no run
    text: str

    def __str__(self) -> str:
        return f"{self.property} {self.run or '-'}: {self.text}"


Finding = Iterator[tuple[str, str]]  #: run and text, of one property


class History:
    """One recorded history and its witness. Its lookups answer for what is not there with nothing."""

    def __init__(self, recorded: Recorded, witness: Witness) -> None:
        self.tables: dict[str, list[Row]] = {name: [_plain(row) for row in rows] for name, rows in recorded.items()}
        self.witness = witness
        self.runs = {row["id"]: row for row in self.table("runs")}
        self.leases = {row["id"]: row for row in self.table("leases")}
        self.checkpoints = {row["id"]: row for row in self.table("checkpoints")}
        self.places = grouped(self.table("places"), "lease_id")
        self.parts = grouped(self.table("checkpoint_parts"), "checkpoint_id")
        self.cursors: dict[Source, Row] = {
            (row["lease_id"], row["node"], row["source"]): row for row in self.table("cursors")
        }
        self._leases = grouped(self.table("leases"), "run_id")
        self._events = grouped(self.table("run_events"), "run_id")
        #: Leases that no host ever had: what was trained elsewhere.
        self.imported = {row["lease_id"] for row in self.table("run_events") if _imports(row)}

    def table(self, name: str) -> list[Row]:
        """All rows, in no order."""
        return self.tables.get(name, [])

    def leases_of(self, run: str) -> list[Row]:
        """A run's leases in the order they were granted."""
        return sorted(self._leases.get(run, ()), key=lambda row: row["attempt"])

    def events_of(self, run: str) -> list[Row]:
        """Return a run's history by number, which is the order of its commits, whatever the clocks showed."""
        return sorted(self._events.get(run, ()), key=lambda row: row["sequence"])

    def run_of(self, lease: str) -> str:
        """Return the run of a lease; empty when the lease is unknown."""
        row = self.leases.get(lease)
        return row["run_id"] if row else ""


def _imports(entry: Row) -> bool:
    return bool(entry["kind"] == "granted" and entry["details"].get("imported"))


def _plain(row: Mapping[str, Any]) -> Row:
    return {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}


def grouped(rows: Iterable[Row], *columns: str) -> dict[Any, list[Row]]:
    """Rows by the value of a column, or by the values of several."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        key = row[columns[0]] if len(columns) == 1 else tuple(row[column] for column in columns)
        groups[key].append(row)
    return groups


def doubles(items: Iterable[Hashable]) -> list[Any]:
    """What occurs more than once."""
    seen: set[Hashable] = set()
    return [item for item in items if item in seen or seen.add(item)]  # type: ignore[func-returns-value]


def seconds(moment: datetime | float) -> float:
    """A recorded time as seconds."""
    return moment.timestamp() if isinstance(moment, datetime) else moment

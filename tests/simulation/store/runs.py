"""The statements of `coordinator.store.runs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.lifecycle import Change, RunState
from coordinator.store import runs
from coordinator.store.runs import OVER, RunDefinition
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.moments import later, seconds
from tests.simulation.store.tables import Row, jsonb

repertoire = Repertoire()


def _ordered(definition: RunDefinition) -> dict[str, Any]:
    return {
        "spec": jsonb(definition.spec),
        "inputs": jsonb(list(definition.inputs)),
        "labels": jsonb(definition.spec.get("labels", {})),
        "priority": definition.spec.get("priority", 0),
        "request_digest": definition.digest,
        "waits_for": definition.waits_for,
    }


async def _write(ex: Execution, run_id: str, **changes: Any) -> None:
    row = ex.get("runs", run_id)
    if row and (row := await ex.lock("runs", row)):
        ex.write("runs", row, **changes)


@repertoire.carries_out(runs.add)
async def add(ex: Execution, run_id: str, definition: RunDefinition, provenance: Mapping[str, str]) -> bool:
    added = await ex.insert_new(
        "runs",
        id=run_id,
        state="queued",
        wanted="run",
        **_ordered(definition),
        pins=jsonb(definition.pins),
        provenance=jsonb(provenance),
    )
    return added is not None


@repertoire.carries_out(runs.redefine)
async def redefine(ex: Execution, run_id: str, definition: RunDefinition) -> None:
    pins = {**(ex.get("runs", run_id) or {}).get("pins", {}), **definition.pins}
    await _write(ex, run_id, **_ordered(definition), pins=jsonb(pins))


@repertoire.carries_out(runs.count_attempt)
async def count_attempt(ex: Execution, run_id: str, attempt: int) -> None:
    await _write(ex, run_id, attempts=attempt)


@repertoire.carries_out(runs.publish)
async def publish(ex: Execution, run_id: str, output: Mapping[str, Any]) -> None:
    await _write(ex, run_id, output=jsonb(output))


@repertoire.carries_out(runs.lock_row)
async def lock_row(ex: Execution, run_id: str) -> Row | None:
    began, before = ex.now, ex.get("runs", run_id)
    if before is None or (row := await ex.lock("runs", before)) is None:
        return None
    now = began if row is before else ex.now  # a row that was only waited for is not looked at again
    return {**{name: row[name] for name in _READ}, "eligible": not later(row["eligible_time"], now)}


_READ = ("id", "state", "wanted", "failures", "faults", "attempts", "spec", "request_digest")


@repertoire.carries_out(runs.write_change)
async def write_change(
    ex: Execution, run_id: str, change: Change, reason: str, error: Mapping[str, Any] | None
) -> None:
    row, after = ex.get("runs", run_id), change.status
    if row is None or (row := await ex.lock("runs", row)) is None:
        return
    failed = row["error"] if error is None else jsonb(error)
    ex.write(
        "runs",
        row,
        state=after.state.value,
        wanted=after.wanted.value,
        failures=after.failures,
        faults=after.faults,
        update_time=ex.now,
        end_time=ex.now if after.state in OVER else None,
        eligible_time=ex.now + seconds(change.backoff) if change.backoff > 0 else None,
        reason=row["reason"] if row["reason"].startswith(f"{reason} by ") else reason,
        error=None if after.state is RunState.SUCCEEDED else failed,
    )

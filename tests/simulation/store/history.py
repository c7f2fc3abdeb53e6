"""The statements of `coordinator.store.history`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from coordinator.database.connections import make_storable_text
from coordinator.store import history
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.tables import jsonb

repertoire = Repertoire()


@repertoire.carries_out(history.record)
async def record(
    ex: Execution,
    run_id: str,
    kind: str,
    text: str,
    *,
    lease_id: UUID | None = None,
    attempt: int = 0,
    level: str = "info",
    details: dict[str, Any] | None = None,
    state: str,
) -> int:
    run = ex.get("runs", run_id)
    assert run is not None
    run = await ex.lock("runs", run)
    assert run is not None
    sequence: int = run["event_sequence"] + 1
    ex.write("runs", run, event_sequence=sequence, update_time=ex.now)
    ex.notify(history.CHANNEL, run_id)
    await ex.insert(
        "run_events",
        run_id=run_id,
        sequence=sequence,
        kind=kind,
        message=make_storable_text(text),
        lease_id=lease_id,
        attempt=attempt,
        level=level,
        details=jsonb(details or {}),
        state=state,
    )
    return sequence


@repertoire.carries_out(history.announce)
async def announce(ex: Execution, run_ids: Sequence[str]) -> None:
    for run_id in run_ids:
        ex.notify(history.CHANNEL, run_id)

"""Advisory locks."""

from __future__ import annotations

from coordinator.store import leadership
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire

repertoire = Repertoire()


@repertoire.carries_out(leadership.try_lead)
async def try_lead(ex: Execution, key: int) -> bool:
    return ex.lock_advisory(key)


@repertoire.carries_out(leadership.still_leads)
async def still_leads(_: Execution) -> None:
    return None

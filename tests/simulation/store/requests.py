"""The statements of `coordinator.store.requests`."""

from __future__ import annotations

from coordinator.store import requests
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire

repertoire = Repertoire()


@repertoire.carries_out(requests.add)
async def add(ex: Execution, request_id: str, run_id: str, digest: str) -> bool:
    return await ex.insert_new("requests", id=request_id, run_id=run_id, digest=digest) is not None


@repertoire.carries_out(requests.find)
async def find(ex: Execution, request_id: str) -> tuple[str, str]:
    row = ex.get("requests", request_id)
    assert row is not None
    return row["run_id"], row["digest"]

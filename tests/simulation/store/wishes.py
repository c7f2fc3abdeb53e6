"""What is asked to tell agents what is wished of them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from coordinator.store import wishes
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.leases import is_listed, is_lost
from tests.simulation.store.tables import Row

repertoire = Repertoire()


@repertoire.carries_out(wishes.wished)
async def wished(ex: Execution, agents: Sequence[str]) -> Sequence[Row]:
    return [row for name in sorted(set(agents)) for row in _of_agent(ex, name)]


def _of_agent(ex: Execution, name: str) -> Sequence[Row]:
    agent = ex.get("agents", name)
    if agent is None:
        return []
    head = {"name": name, "session_id": agent["session_id"], "wish_version": agent["wish_version"]}
    rows = [{**head, **row} for row in _places(ex, agent)]
    rows.sort(key=lambda row: (row["grant_time"], row["node"]))
    return rows or [{**head, "lease_id": None}]


def _places(ex: Execution, agent: Row) -> Sequence[Row]:
    found = []
    for place in ex.where("places", "agent", agent["name"]):
        lease = ex.get("leases", place["lease_id"])
        if place["end_time"] is None and lease and lease["end_time"] is None and is_lost(place, agent) is False:
            of_place = {name: place[name] for name in ("lease_id", "node", "slots")}
            of_lease = {name: lease[name] for name in ("run_id", "attempt", "policy", "stop_reason", "grant_time")}
            found.append({**of_place, **of_lease, "listed": is_listed(place, agent)})
    return found


@repertoire.carries_out(wishes.order)
async def order(ex: Execution, run_id: str) -> Row:
    run = ex.get("runs", run_id)
    assert run is not None
    return {name: run[name] for name in ("spec", "inputs", "pins")}


@repertoire.carries_out(wishes.placed)
async def placed(ex: Execution, agent: str, held: Sequence[UUID]) -> Sequence[Row]:
    leases = (ex.get("leases", lease_id) for lease_id in dict.fromkeys(held))
    return [
        {name: lease[name] for name in ("id", "run_id", "start_time")}
        for lease in leases
        if lease and lease["end_time"] is None
        and any(place["agent"] == agent for place in ex.where("places", "lease_id", lease["id"]))
    ]  # fmt: skip

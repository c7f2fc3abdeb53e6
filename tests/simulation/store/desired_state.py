"""The statements of `coordinator.store.desired_state`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import UUID

from coordinator.store import desired_state
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.leases import is_listed, is_lost
from tests.simulation.store.tables import Row

repertoire = Repertoire()


@repertoire.carries_out(desired_state.read_rows)
async def read_rows(ex: Execution, agents: Sequence[str]) -> Sequence[Row]:
    return [row for name in sorted(set(agents)) for row in _of_agent(ex, name)]


def _of_agent(ex: Execution, name: str) -> Sequence[Row]:
    agent = ex.get("agents", name)
    if agent is None:
        return []
    head = {"name": name, "session_id": agent["session_id"], "wish_version": agent["wish_version"]}
    found = sorted(_places(ex, agent), key=lambda pair: (pair[1]["grant_time"], pair[1]["id"], pair[0]["node"]))
    rows = [{**head, **_columns(place, lease), "listed": is_listed(place, agent)} for place, lease in found]
    return rows or [{**head, **dict.fromkeys((*_OF_PLACE, *_OF_LEASE)), "listed": False}]


_OF_PLACE, _OF_LEASE = ("lease_id", "node", "slots"), ("run_id", "attempt", "policy", "stop_reason")


def _columns(place: Row, lease: Row) -> Row:
    return {**{name: place[name] for name in _OF_PLACE}, **{name: lease[name] for name in _OF_LEASE}}


def _places(ex: Execution, agent: Row) -> Iterator[tuple[Row, Row]]:
    """Each with its lease."""
    for place in ex.where("places", "agent", agent["name"]):
        lease = ex.get("leases", place["lease_id"])
        if place["end_time"] is None and lease and lease["end_time"] is None and is_lost(place, agent) is False:
            yield place, lease


@repertoire.carries_out(desired_state.read_definition)
async def read_definition(ex: Execution, run_id: str) -> Row:
    run = ex.get("runs", run_id)
    assert run is not None
    return {name: run[name] for name in ("spec", "inputs", "pins")}


@repertoire.carries_out(desired_state.find_leases_on)
async def find_leases_on(ex: Execution, agent: str, held: Sequence[UUID]) -> Sequence[Row]:
    leases = (ex.get("leases", lease_id) for lease_id in sorted(set(held)))
    return [
        {name: lease[name] for name in ("id", "run_id", "start_time")}
        for lease in leases
        if lease and lease["end_time"] is None
        and any(place["agent"] == agent for place in ex.where("places", "lease_id", lease["id"]))
    ]  # fmt: skip

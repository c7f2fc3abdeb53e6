"""The statements of `coordinator.store.leases`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from coordinator.database.connections import make_storable_text
from coordinator.lifecycle import Closing, LeaseState, Policy, RunState, StopReason
from coordinator.store import leases
from coordinator.store.leases import LeaseEnd, LeaseRow
from coordinator.values import Cursor, HeldPlace, LeasePlace
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.moments import seconds
from tests.simulation.store.tables import Row, jsonb

repertoire = Repertoire()


def _has_not_ended(row: Row) -> bool:
    return row["end_time"] is None


def places_of(ex: Execution, lease_id: UUID) -> list[Row]:
    """By node."""
    return sorted(ex.where("places", "lease_id", lease_id), key=lambda row: int(row["node"]))


async def _lease(ex: Execution, lease_id: UUID) -> Row | None:
    """Locked."""
    row = ex.get("leases", lease_id)
    return await ex.lock("leases", row) if row else None


@repertoire.carries_out(leases.lock_unended)
async def lock_unended(ex: Execution, run_id: str) -> LeaseRow | None:
    for row in ex.where("leases", "run_id", run_id):
        if _has_not_ended(row) and (locked := await ex.lock("leases", row, _has_not_ended)):
            return LeaseRow.from_row(locked)
    return None


@repertoire.carries_out(leases.add)
async def add(ex: Execution, run_id: str, attempt: int, policy: Policy) -> UUID:
    row = await ex.insert("leases", run_id=run_id, attempt=attempt, state="held", policy=policy.value)
    lease_id: UUID = row["id"]
    return lease_id


@repertoire.carries_out(leases.add_place)
async def add_place(ex: Execution, lease_id: UUID, place: LeasePlace, ttl: float) -> None:
    if agent := ex.get("agents", place.agent):
        await ex.insert(
            "places",
            lease_id=lease_id,
            node=place.node,
            agent=place.agent,
            session_id=agent["session_id"],
            boot_id=agent["boot_id"],
            slots=list(place.slots),
            expire_time=ex.now + seconds(ttl),
        )


@repertoire.carries_out(leases.take_slots)
async def take_slots(ex: Execution, lease_id: UUID, place: LeasePlace) -> None:
    for slot in place.slots:
        await ex.insert("taken_slots", agent=place.agent, slot=slot, lease_id=lease_id, node=place.node)


@repertoire.carries_out(leases.close_row)
async def close_row(
    ex: Execution,
    lease_id: UUID,
    closing: Closing,
    error: Mapping[str, Any] | None,
    completion: Mapping[str, Any] | None,
) -> None:
    if row := await _lease(ex, lease_id):
        ex.write(
            "leases",
            row,
            state="ended",
            end_time=ex.now,
            outcome=closing.outcome.value,
            reason=closing.reason,
            error=jsonb(error),
            completion=jsonb(completion),
        )


@repertoire.carries_out(leases.free_slots)
async def free_slots(ex: Execution, lease_id: UUID) -> None:
    for row in ex.where("taken_slots", "lease_id", lease_id):
        await ex.delete("taken_slots", row)


@repertoire.carries_out(leases.end_places)
async def end_places(ex: Execution, lease_id: UUID) -> list[str]:
    places = [row for row in places_of(ex, lease_id) if _has_not_ended(row)]
    locked = await ex.lock_all("places", places, _has_not_ended)
    return [ex.write("places", row, end_time=ex.now)["agent"] for row in locked]


@repertoire.carries_out(leases.start)
async def start(
    ex: Execution,
    lease_id: UUID,
    checkpoint_id: UUID | None,
    step: int,
    skipped: Sequence[Mapping[str, Any]],
) -> None:
    if row := await _lease(ex, lease_id):
        ex.write(
            "leases",
            row,
            start_time=ex.now,
            resumed_from=checkpoint_id,
            resumed_step=step,
            skipped=jsonb(list(skipped)),
        )


@repertoire.carries_out(leases.record_fidelity)
async def record_fidelity(ex: Execution, lease_id: UUID, fidelity: str, reasons: Sequence[str]) -> None:
    if row := await _lease(ex, lease_id):
        ex.write(
            "leases", row, fidelity=fidelity, fidelity_reasons=jsonb([make_storable_text(each) for each in reasons])
        )


@repertoire.carries_out(leases.write_state)
async def write_state(ex: Execution, lease_id: UUID, state: LeaseState, stop: StopReason | None) -> None:
    if row := await _lease(ex, lease_id):
        ex.write("leases", row, state=state.value, stop_reason=stop.value if stop else None)


@repertoire.carries_out(leases.find_run)
async def find_run(ex: Execution, lease_id: UUID) -> str | None:
    row = ex.get("leases", lease_id)
    return row["run_id"] if row else None


@repertoire.carries_out(leases.lock_end)
async def lock_end(ex: Execution, lease_id: UUID) -> LeaseEnd | None:
    row = ex.get("leases", lease_id)
    run = ex.get("runs", row["run_id"]) if row else None
    run = await ex.lock("runs", run) if run else None
    row = await ex.lock("leases", row) if row and run else None
    if row is None or run is None:
        return None
    return LeaseEnd(row["end_time"] is not None, (row["completion"] or {}).get("digest"), RunState(run["state"]))


@repertoire.carries_out(leases.read_places)
async def read_places(ex: Execution, lease_id: UUID) -> list[LeasePlace]:
    return [LeasePlace(row["node"], row["agent"], tuple(row["slots"])) for row in places_of(ex, lease_id)]


@repertoire.carries_out(leases.read_cursors)
async def read_cursors(ex: Execution, lease_id: UUID) -> list[Cursor]:
    rows = sorted(ex.where("cursors", "lease_id", lease_id), key=lambda row: (row["node"], row["source"]))
    return [Cursor(row["node"], row["source"], row["offset_bytes"]) for row in rows]


@repertoire.carries_out(leases.renew)
async def renew(ex: Execution, held: Sequence[tuple[str, UUID, HeldPlace]], ttl: float) -> list[UUID]:
    listed: dict[tuple[UUID, int], UUID] = {}
    for agent, session_id, item in held:
        row = ex.get("places", (item.lease_id, item.node))
        if row is not None and row["agent"] == agent and _has_not_ended(row):
            listed.setdefault((item.lease_id, item.node), session_id)
    places = [row for place in sorted(listed) if (row := ex.get("places", place)) is not None]
    renewed: set[UUID] = set()
    for row in await ex.lock_all("places", places, _has_not_ended):
        session_id = listed[row["lease_id"], row["node"]]
        if _has_session(ex, row["agent"], session_id):
            ex.write("places", row, expire_time=ex.now + seconds(ttl), reported=True, session_id=session_id)
            renewed.add(row["lease_id"])
    return [lease_id for lease_id in sorted(renewed) if _has_lapsed(ex, lease_id)]


def _has_session(ex: Execution, name: str, session_id: UUID) -> bool:
    """As the statement saw the agent when it began, also where it has waited since for a place."""
    agent = ex.get("agents", name)
    return agent is not None and agent["session_id"] == session_id


def _has_lapsed(ex: Execution, lease_id: UUID) -> bool:
    lease = ex.get("leases", lease_id)
    return lease is not None and lease["state"] == "lapsed"


def is_listed(place: Row, agent: Row) -> bool:
    """Whether the agent lists the place."""
    lease_id = str(place["lease_id"])
    return any(held["lease"] == lease_id and held["node"] == place["node"] for held in agent["held"])


def is_lost(place: Row, agent: Row) -> bool | None:
    """Whether it should and does not; None, as in SQL, where it has no session to be compared with."""
    if is_listed(place, agent):
        return False
    if place["reported"]:
        return True
    return None if agent["session_id"] is None else bool(place["session_id"] != agent["session_id"])


def _missing(ex: Execution, places: Sequence[Row]) -> Iterator[Row]:
    for place in places:
        agent, lease = ex.get("agents", place["agent"]), ex.get("leases", place["lease_id"])
        if agent is None or lease is None or agent["session_id"] is None:
            continue
        may_be_a_clone = lease["policy"] == "stop" and place["boot_id"] != agent["boot_id"]
        unended = _has_not_ended(place) and _has_not_ended(lease)
        if unended and is_lost(place, agent) and not may_be_a_clone:
            yield place


@repertoire.carries_out(leases.find_missing)
async def find_missing(ex: Execution, agents: Sequence[str]) -> list[UUID]:
    places = [row for agent in sorted(set(agents)) for row in ex.where("places", "agent", agent)]
    return sorted({row["lease_id"] for row in _missing(ex, places)})


@repertoire.carries_out(leases.find_missing_agent)
async def find_missing_agent(ex: Execution, lease_id: UUID) -> str | None:
    return next((row["agent"] for row in _missing(ex, places_of(ex, lease_id))), None)


@repertoire.carries_out(leases.find_expired)
async def find_expired(ex: Execution, at: datetime) -> list[UUID]:
    now = min(ex.now, at)
    held = sorted(row["id"] for row in ex.rows("leases") if _has_not_ended(row) and row["state"] == "held")
    return [lease for lease in held if any(row["expire_time"] < now for row in ex.where("places", "lease_id", lease))]


@repertoire.carries_out(leases.find_expired_agent)
async def find_expired_agent(ex: Execution, lease_id: UUID, at: datetime | None = None) -> str | None:
    over, began = [], ex.now
    for row in places_of(ex, lease_id):
        if _has_not_ended(row) and (locked := await ex.lock("places", row, _has_not_ended)):
            now = began if locked is row else ex.now  # a row that was only waited for is not looked at again
            over += [locked["agent"]] if locked["expire_time"] < (now if at is None else min(now, at)) else []
    return over[0] if over else None

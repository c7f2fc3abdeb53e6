"""The statements of `coordinator.store.deployment`: the deployment's row, identity and clock, and leadership."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from coordinator.store import deployment
from coordinator.store.deployment import DatabaseIdentity, ReaperClock
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.moments import later, latest, seconds
from tests.simulation.store.tables import Row

repertoire = Repertoire()


def _row(ex: Execution) -> Row:
    row = ex.get("deployment", True)
    assert row is not None
    return row


async def _locked(ex: Execution) -> Row:
    row = await ex.lock("deployment", _row(ex))
    assert row is not None
    return row


def _remembered_identity(row: Row) -> DatabaseIdentity | None:
    if row["system_identifier"] is None:
        return None
    return DatabaseIdentity(row["system_identifier"], row["database_oid"], row["timeline"])


@repertoire.carries_out(deployment.read_deployment_id)
async def read_deployment_id(ex: Execution) -> UUID:
    found: UUID = _row(ex)["deployment_id"]
    return found


@repertoire.carries_out(deployment.read_identity)
async def read_identity(ex: Execution) -> DatabaseIdentity:
    return ex.identity


@repertoire.carries_out(deployment.lock_remembered_identity)
async def lock_remembered_identity(ex: Execution) -> DatabaseIdentity | None:
    return _remembered_identity(await _locked(ex))


@repertoire.carries_out(deployment.remember_identity)
async def remember_identity(ex: Execution, found: DatabaseIdentity) -> None:
    row = await _locked(ex)
    ex.write("deployment", row, system_identifier=found.system, database_oid=found.oid, timeline=found.timeline)


@repertoire.carries_out(deployment.withhold_stop_runs)
async def withhold_stop_runs(ex: Execution, ttl: float) -> None:
    row = await _locked(ex)
    ex.write("deployment", row, stop_grants_after=ex.now + seconds(ttl))


@repertoire.carries_out(deployment.read_withholding)
async def read_withholding(ex: Execution) -> tuple[bool, DatabaseIdentity | None]:
    row = _row(ex)
    return later(row["stop_grants_after"], ex.now), _remembered_identity(row)


def _unended_places(ex: Execution) -> list[Row]:
    """In the order in which they are locked."""
    unended = [row for row in ex.rows("places") if row["end_time"] is None]
    return sorted(unended, key=lambda row: (row["lease_id"], row["node"]))


def _has_not_ended(row: Row) -> bool:
    return row["end_time"] is None


@repertoire.carries_out(deployment.extend_places)
async def extend_places(ex: Execution, ttl: float) -> None:
    for row in await ex.lock_all("places", _unended_places(ex), _has_not_ended):
        ex.write("places", row, expire_time=ex.now + seconds(ttl))


@repertoire.carries_out(deployment.lock_clock)
async def lock_clock(ex: Execution) -> ReaperClock:
    began, before = ex.now, _row(ex)
    row = await _locked(ex)
    return ReaperClock.from_row({**row, "now": began if row is before else ex.now})


@repertoire.carries_out(deployment.record_tick)
async def record_tick(ex: Execution, now: datetime, grace: float | None) -> None:
    row = await _locked(ex)
    lapses_after = row["lapses_after"] if grace is None else now + seconds(grace)
    ex.write("deployment", row, reaper_tick=now, lapses_after=lapses_after)


@repertoire.carries_out(deployment.read_heartbeat_ages)
async def read_heartbeat_ages(ex: Execution, now: datetime, recent: float) -> list[float]:
    found = []
    for agent in ex.rows("agents"):
        heard = agent["heartbeat_time"]
        if heard is None:
            continue
        has_places = any(row["end_time"] is None for row in ex.where("places", "agent", agent["name"]))
        if has_places or (not agent["leaving"] and heard > now - seconds(recent)):
            newest = latest(heard, agent["connect_time"])
            assert newest is not None
            found.append((now - newest).total_seconds())
    return found


@repertoire.carries_out(deployment.shorten_backoffs)
async def shorten_backoffs(ex: Execution, longest: float) -> None:
    def waits_too_long(row: Row) -> bool:
        return row["state"] == "queued" and later(row["eligible_time"], ex.now + seconds(longest))

    waiting = sorted((row for row in ex.rows("runs") if waits_too_long(row)), key=lambda row: str(row["id"]))
    for row in await ex.lock_all("runs", waiting, waits_too_long):
        ex.write("runs", row, eligible_time=ex.now + seconds(longest))


@repertoire.carries_out(deployment.shorten_places)
async def shorten_places(ex: Execution, ttl: float) -> None:
    def lasts_too_long(row: Row) -> bool:
        return row["end_time"] is None and bool(row["expire_time"] > ex.now + seconds(ttl))

    lasting = [row for row in _unended_places(ex) if lasts_too_long(row)]
    for row in await ex.lock_all("places", lasting, lasts_too_long):
        ex.write("places", row, expire_time=ex.now + seconds(ttl))


@repertoire.carries_out(deployment.clamp_agent_times)
async def clamp_agent_times(ex: Execution) -> None:
    def was_heard_later(row: Row) -> bool:
        return later(latest(row["heartbeat_time"], row["connect_time"]), ex.now)

    heard = sorted((row for row in ex.rows("agents") if was_heard_later(row)), key=lambda row: str(row["name"]))
    for row in await ex.lock_all("agents", heard, was_heard_later):
        ex.write("agents", row, heartbeat_time=ex.now, connect_time=ex.now)


@repertoire.carries_out(deployment.shorten_withholding)
async def shorten_withholding(ex: Execution, ttl: float) -> None:
    def lasts_too_long(row: Row) -> bool:
        return later(row["stop_grants_after"], ex.now + seconds(ttl))

    if lasts_too_long(_row(ex)) and lasts_too_long(row := await _locked(ex)):
        ex.write("deployment", row, stop_grants_after=ex.now + seconds(ttl))


@repertoire.carries_out(deployment.list_unended_leases)
async def list_unended_leases(ex: Execution) -> list[UUID]:
    return sorted(row["id"] for row in ex.rows("leases") if row["end_time"] is None)


@repertoire.carries_out(deployment.try_lead)
async def try_lead(ex: Execution, key: int) -> bool:
    return ex.lock_advisory(key)


@repertoire.carries_out(deployment.check_leadership)
async def check_leadership(_: Execution) -> None:
    return None

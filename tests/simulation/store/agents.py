"""The statements of `coordinator.store.agents`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from coordinator.store import agents
from coordinator.values import Heartbeat, Hello
from tests.simulation.store.execution import Execution
from tests.simulation.store.interpreter import Repertoire
from tests.simulation.store.moments import latest
from tests.simulation.store.tables import Row, jsonb

repertoire = Repertoire()


@repertoire.carries_out(agents.lock_rows)
async def lock_rows(ex: Execution, names: Sequence[str]) -> Sequence[Row]:
    found = []
    began = ex.now
    for row in _named(ex, names):
        if (locked := await ex.lock("agents", row)) is not None:
            now = began if locked is row else ex.now  # a row that was only waited for is not looked at again
            found.append({**locked, "heartbeat_age": _heartbeat_age(locked, now)})
    return found


def _named(ex: Execution, names: Iterable[str]) -> list[Row]:
    """In the order of their names."""
    return [row for name in sorted(set(names)) if (row := ex.get("agents", name)) is not None]


def _heartbeat_age(row: Row, now: datetime) -> timedelta | None:
    heard = latest(row["heartbeat_time"], row["connect_time"])
    return None if heard is None else now - heard


@repertoire.carries_out(agents.read_session)
async def read_session(ex: Execution, name: str) -> UUID | None:
    row = ex.get("agents", name)
    session_id: UUID | None = row["session_id"] if row else None
    return session_id


@repertoire.carries_out(agents.raise_desired_versions)
async def raise_desired_versions(ex: Execution, names: Sequence[str]) -> None:
    for row in await ex.lock_all("agents", _named(ex, names)):
        ex.write("agents", row, wish_version=row["wish_version"] + 1)


@repertoire.carries_out(agents.announce)
async def announce(ex: Execution, names: Iterable[str]) -> None:
    for name in sorted(set(names)):
        ex.notify("relay_wishes", name)


@repertoire.carries_out(agents.add)
async def add(ex: Execution, hello: Hello) -> None:
    await ex.insert_new("agents", name=hello.agent, instance_id=hello.instance_id, boot_id=hello.boot_id)


@repertoire.carries_out(agents.begin_session)
async def begin_session(ex: Execution, hello: Hello, retired: Sequence[str]) -> UUID:
    session_id = ex.new_id()
    await ex.update(
        "agents",
        _named(ex, [hello.agent]),
        session_id=session_id,
        instance_id=hello.instance_id,
        dial=hello.dial,
        boot_id=hello.boot_id,
        retired_instances=list(retired)[-agents.RETIRED :],
        capability=jsonb(hello.capability),
        labels=jsonb(hello.labels),
        slots=list(hello.slots),
        connect_time=ex.now,
        disconnect_time=None,
        heartbeat_time=ex.now,
        held=jsonb([held.to_json() for held in hello.held]),
        ready=hello.readiness.ready,
        readiness_reason=hello.readiness.reason,
        leaving=hello.readiness.leaving,
    )
    return session_id


@repertoire.carries_out(agents.end_session)
async def end_session(ex: Execution, agent: str, session_id: UUID) -> None:
    def is_its(row: Row) -> bool:
        return bool(row["session_id"] == session_id)

    its = [row for row in _named(ex, [agent]) if is_its(row)]
    for row in await ex.lock_all("agents", its, is_its):
        ex.write("agents", row, disconnect_time=ex.now)


@repertoire.carries_out(agents.end_sessions)
async def end_sessions(ex: Execution) -> list[str]:
    ended = sorted(ex.rows("agents"), key=lambda row: str(row["name"]))
    return [row["name"] for row in await ex.update("agents", ended, session_id=None)]


@repertoire.carries_out(agents.record_heartbeats)
async def record_heartbeats(ex: Execution, heartbeats: Sequence[Heartbeat]) -> bool:
    heard: dict[str, Heartbeat] = {}
    for pulse in heartbeats:
        row = ex.get("agents", pulse.agent)
        if row is not None and row["session_id"] == pulse.session_id:
            heard.setdefault(pulse.agent, pulse)

    def is_its(row: Row) -> bool:
        return bool(row["session_id"] == heard[row["name"]].session_id)

    locked = await ex.lock_all("agents", _named(ex, heard), is_its)
    return any([_hear(ex, row, heard[row["name"]]) for row in locked])


def _hear(ex: Execution, row: Row, pulse: Heartbeat) -> bool:
    said, held = pulse.readiness, jsonb([held.to_json() for held in pulse.held])
    ex.write(
        "agents",
        row,
        heartbeat_time=ex.now,
        held=held,
        ready=said.ready,
        readings=row["readings"] if pulse.readings is None else jsonb(pulse.readings),
        readiness_reason=said.reason,
        leaving=said.leaving,
    )
    return bool(row["held"] != held or row["ready"] != said.ready or row["leaving"] != said.leaving)

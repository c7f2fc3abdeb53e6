"""Queries for users: runs, attempts and agents. Nothing here locks or writes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import aliased

from coordinator.database.tables import Agent, Deployment, Lease, Place, Run
from coordinator.lifecycle import RunState
from coordinator.store.runs import OVER
from relay.errors import AgentUnknown, InvalidRequest, RunUnknown


@dataclass(frozen=True, slots=True)
class AttemptView:
    """A lease with its places by node."""

    lease: Lease
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with its unended lease."""

    run: Run
    attempt: AttemptView | None


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent, the places that it holds, and the database's time."""

    agent: Agent
    places: tuple[tuple[Place, str], ...]  #: each with its run
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Selects the runs to list."""

    states: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    after: str = ""  #: page token
    limit: int = 50


@dataclass(frozen=True, slots=True)
class DependentRun:
    """A queued run that waits for another run, which is over."""

    run_id: str
    spec: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    request_digest: str
    awaited: str
    outcome: RunState  #: state of that other run


async def read_run(connection: AsyncConnection, run_id: str) -> RunView:
    """Return one run; RunUnknown."""
    async with AsyncSession(connection) as session:
        found = await _read_views(session, _WITH_LEASE.where(Run.id == run_id))
    if not found:
        raise RunUnknown(f"there is no run {run_id}", run=run_id)
    return found[0]


async def list_runs(connection: AsyncConnection, which: RunFilter) -> tuple[list[RunView], str]:
    """Return one page of runs, newest first, and the token of the next page (empty on the last page)."""
    query = _WITH_LEASE.order_by(Run.create_time.desc(), Run.id).limit(which.limit + 1)
    if which.states:
        query = query.where(Run.state.in_(which.states))
    if which.labels:
        query = query.where(Run.labels.contains(dict(which.labels)))
    if which.created_after:
        query = query.where(Run.create_time >= which.created_after)
    if which.after:
        created, last = _decode_token(which.after)
        query = query.where(or_(Run.create_time < created, and_(Run.create_time == created, Run.id > last)))
    async with AsyncSession(connection) as session:
        found = await _read_views(session, query)
    page = found[: which.limit]
    return page, _encode_token(page[-1].run) if len(found) > which.limit else ""


def _encode_token(last: Run) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.create_time.isoformat(), last.id]).encode()).decode()


def _decode_token(token: str) -> tuple[datetime, str]:
    try:
        created, last = json.loads(base64.urlsafe_b64decode(token))
        return datetime.fromisoformat(created), str(last)
    except (ValueError, TypeError) as error:
        raise InvalidRequest("page_token is not one that was given out") from error


async def list_released_dependents(connection: AsyncConnection) -> list[DependentRun]:
    """Return the queued runs whose awaited run is over."""
    other = aliased(Run)
    query = (
        select(Run.id, Run.spec, Run.inputs, Run.request_digest, other.id, other.state)
        .join(other, other.id == Run.waits_for)
        .where(Run.state == RunState.QUEUED.value, other.state.in_([state.value for state in OVER]))
        .order_by(Run.id)
    )
    async with AsyncSession(connection) as session:
        rows = (await session.execute(query)).all()
    return [
        DependentRun(run, spec, tuple(inputs), digest, it, RunState(state))
        for run, spec, inputs, digest, it, state in rows
    ]


async def list_attempts(connection: AsyncConnection, run_id: str) -> list[AttemptView]:
    """Return all attempts of a run, oldest first; RunUnknown."""
    async with AsyncSession(connection) as session:
        if await session.get(Run, run_id) is None:
            raise RunUnknown(f"there is no run {run_id}", run=run_id)
        found = list(await session.scalars(select(Lease).where(Lease.run_id == run_id).order_by(Lease.attempt)))
        places = await _read_places(session, [lease.id for lease in found])
        return [AttemptView(lease, places.get(lease.id, ())) for lease in found]


#: Runs, each with its unended lease.
_WITH_LEASE = select(Run, Lease).outerjoin(Lease, and_(Lease.run_id == Run.id, Lease.end_time.is_(None)))


async def _read_views(session: AsyncSession, query: Select[Run, Lease]) -> list[RunView]:
    found: list[tuple[Run, Lease | None]] = [(row[0], row[1]) for row in await session.execute(query)]
    held = [lease.id for _, lease in found if lease]
    places = await _read_places(session, held) if held else {}
    return [RunView(row, AttemptView(lease, places.get(lease.id, ())) if lease else None) for row, lease in found]


async def _read_places(session: AsyncSession, lease_ids: Sequence[UUID]) -> dict[UUID, tuple[Place, ...]]:
    found = await session.scalars(select(Place).where(Place.lease_id.in_(lease_ids)).order_by(Place.node))
    places: dict[UUID, tuple[Place, ...]] = {}
    for place in found:
        places[place.lease_id] = (*places.get(place.lease_id, ()), place)
    return places


async def list_agents(
    connection: AsyncConnection, *, name: str = "", labels: Mapping[str, str] | None = None
) -> list[AgentView]:
    """Return agents by name: all with these labels, or the one of this name; AgentUnknown."""
    query = select(Agent).order_by(Agent.name)
    if name:
        query = query.where(Agent.name == name)
    if labels:
        query = query.where(Agent.labels.contains(dict(labels)))
    async with AsyncSession(connection) as session:
        found = list(await session.scalars(query))
        if name and not found:
            raise AgentUnknown(f"there is no agent {name}", agent=name)
        now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
        rows = await session.execute(
            select(Place, Lease.run_id)
            .join(Lease, Lease.id == Place.lease_id)
            .where(Place.agent.in_([row.name for row in found]), Place.end_time.is_(None))
            .order_by(Lease.grant_time)
        )
        places = [(place, run_id) for place, run_id in rows]
    return [AgentView(row, tuple(pair for pair in places if pair[0].agent == row.name), now) for row in found]


async def read_deployment(connection: AsyncConnection) -> tuple[UUID, datetime]:
    """Return the id of the deployment and the database's time."""
    row = (await connection.execute(select(Deployment.deployment_id, func.clock_timestamp()))).one()
    return row[0], row[1]

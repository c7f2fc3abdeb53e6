"""Completions that trainers showed, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFilter:
    """Which samples of a run; steps inclusive."""

    run_id: str
    kinds: tuple[str, ...]
    from_step: int = 0
    to_step: int = 2**62
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample as stored, with the attempt that made it."""

    id: int
    lease_id: UUID
    attempt: int
    step: int
    kind: str
    prompt: str
    completion: str
    rewards: Mapping[str, Any]
    time: float
    superseded: bool


_MATCHING = """FROM samples s JOIN leases l ON l.id = s.lease_id
           WHERE s.run_id = $1 AND s.kind = ANY($2) AND s.step BETWEEN $3 AND $4
             AND ($5 OR l.kept_until_step IS NULL OR s.step <= l.kept_until_step)"""


async def read(conn: asyncpg.Connection, which: SampleFilter, after: int, limit: int) -> list[Shown]:
    """Those after an id, in the order of arrival."""
    rows = await conn.fetch(
        f"""SELECT s.id, s.lease_id, l.attempt, s.step, s.kind, s.prompt, s.completion, s.rewards, s.time,
                   coalesce(s.step > l.kept_until_step, false)
            {_MATCHING} AND s.id > $6 ORDER BY s.id LIMIT $7""",
        *_arguments(which),
        after,
        limit,
    )
    return [Shown(*row) for row in rows]


async def first_of_last(conn: asyncpg.Connection, which: SampleFilter, count: int) -> int:
    """The first of the newest `count` steps that have such samples; 0 where there are fewer."""
    query = f"SELECT DISTINCT s.step {_MATCHING} ORDER BY s.step DESC LIMIT $6"
    rows = await conn.fetch(query, *_arguments(which), count)
    return rows[-1]["step"] if len(rows) == count else 0


def _arguments(which: SampleFilter) -> tuple[Any, ...]:
    return which.run_id, list(which.kinds), which.from_step, which.to_step, which.superseded

"""Submissions that have been carried out, by the caller's own id: a repeated one is answered, not done again (S9)."""

from __future__ import annotations

import asyncpg

from coordinator.store.statement import statement
from relay.errors import RequestIdReused


async def claim(conn: asyncpg.Connection, request_id: str, run_id: str, digest: str) -> str | None:
    """Notes that this transaction carries the request out; the run that it was carried out for, if it was before.

    Waits for a transaction that carries it out just now. `digest` is of all that was asked for; the same id with
    another is RequestIdReused.
    """
    if await add(conn, request_id, run_id, digest):
        return None
    known, asked = await find(conn, request_id)
    if asked != digest:
        raise RequestIdReused(f"this request id was used for run {known}, with another spec", run=known)
    return known


async def is_known(conn: asyncpg.Connection, request_id: str) -> bool:
    """Whether a request has been carried out."""
    return bool(await conn.fetchval("SELECT true FROM requests WHERE id = $1", request_id))


@statement
async def add(conn: asyncpg.Connection, request_id: str, run_id: str, digest: str) -> bool:
    """Notes a request; False when it has been noted, also by a transaction that this one then waited for."""
    inserted = await conn.fetchval(
        "INSERT INTO requests (id, run_id, digest) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id",
        request_id,
        run_id,
        digest,
    )
    return inserted is not None


@statement
async def find(conn: asyncpg.Connection, request_id: str) -> tuple[str, str]:
    """The run and the digest of a request that has been noted."""
    row = await conn.fetchrow("SELECT run_id, digest FROM requests WHERE id = $1", request_id)
    return row["run_id"], row["digest"]

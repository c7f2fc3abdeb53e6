"""The table of request ids: a repeated submission is answered, not carried out again (S9)."""

from __future__ import annotations

import asyncpg

from coordinator.store.statement import statement
from relay.errors import RequestIdReused


async def claim(conn: asyncpg.Connection, request_id: str, run_id: str, digest: str) -> str | None:
    """Record that this transaction carries out a request; return the run of the earlier request when there was one.

    Waits for a transaction that carries it out at the same time. `digest` covers everything that was requested; the
    same id with another digest is RequestIdReused.
    """
    if await add(conn, request_id, run_id, digest):
        return None
    known, recorded = await find(conn, request_id)
    if recorded != digest:
        raise RequestIdReused(f"this request id was used for run {known}, with another spec", run=known)
    return known


async def is_known(conn: asyncpg.Connection, request_id: str) -> bool:
    """Return whether a request has been carried out."""
    return bool(await conn.fetchval("SELECT true FROM requests WHERE id = $1", request_id))


@statement
async def add(conn: asyncpg.Connection, request_id: str, run_id: str, digest: str) -> bool:
    """Record a request; return False when it is recorded, also by a transaction that this one waited for."""
    inserted = await conn.fetchval(
        "INSERT INTO requests (id, run_id, digest) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id",
        request_id,
        run_id,
        digest,
    )
    return inserted is not None


@statement
async def find(conn: asyncpg.Connection, request_id: str) -> tuple[str, str]:
    """Return the run and the digest of a recorded request."""
    row = await conn.fetchrow("SELECT run_id, digest FROM requests WHERE id = $1", request_id)
    return row["run_id"], row["digest"]

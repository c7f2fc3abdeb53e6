"""Submissions that have been carried out, by the caller's own id: a repeated one is answered, not done again (S9)."""

from __future__ import annotations

import asyncpg

from relay.errors import RequestIdReused


async def claim(conn: asyncpg.Connection, request_id: str, run_id: str, digest: str) -> str | None:
    """Notes that this transaction carries the request out; the run that it was carried out for, if it was before.

    Waits for a transaction that carries it out just now. `digest` is of all that was asked for; the same id with
    another is RequestIdReused.
    """
    inserted = await conn.fetchval(
        "INSERT INTO requests (id, run_id, digest) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id",
        request_id,
        run_id,
        digest,
    )
    if inserted is not None:
        return None
    row = await conn.fetchrow("SELECT run_id, digest FROM requests WHERE id = $1", request_id)
    known: str = row["run_id"]
    if row["digest"] != digest:
        raise RequestIdReused(f"this request id was used for run {known}, with another spec", run=known)
    return known

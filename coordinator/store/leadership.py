"""What one connection at a time has: an advisory lock, which goes with its connection."""

from __future__ import annotations

import asyncpg

from coordinator.store.statement import statement


@statement
async def try_lead(conn: asyncpg.Connection, key: int) -> bool:
    """True when the connection has the lock of the key from now on; it does not wait."""
    leads: bool = await conn.fetchval("SELECT pg_try_advisory_lock($1)", key)
    return leads


@statement
async def still_leads(conn: asyncpg.Connection) -> None:
    """Returns while the connection lives, and what it has with it."""
    await conn.execute("SELECT 1")

"""Migrations: what they make is what the tables say, and they can be taken back."""

import asyncio
from dataclasses import replace

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from coordinator.database import migrate
from coordinator.database.connections import connect_database
from coordinator.database.tables import REVISION
from coordinator.store import deployment


async def _tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    return {row["tablename"] for row in rows}


async def test_up_then_no_difference_then_down(empty_database_url: str) -> None:
    await migrate.upgrade(empty_database_url)
    await migrate.check(empty_database_url)
    assert {"runs", "leases", "cursors"} <= await _tables(empty_database_url)
    await migrate.downgrade(empty_database_url, "base")
    assert await _tables(empty_database_url) == {"alembic_version"}


def test_a_coordinator_wants_the_newest_revision() -> None:
    assert ScriptDirectory(str(migrate.MIGRATIONS)).get_current_head() == REVISION


async def test_replicas_that_migrate_at_once_wait_for_each_other(empty_database_url: str) -> None:
    await asyncio.gather(*(migrate.upgrade(empty_database_url) for _ in range(3)))
    await migrate.check(empty_database_url)


async def test_a_table_in_use_fails_the_migration_instead_of_holding_up_everybody(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.upgrade(empty_database_url)
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "50ms")
    connection = await asyncpg.connect(empty_database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE runs IN ACCESS SHARE MODE")
            with pytest.raises(Exception, match="lock timeout"):
                await migrate.downgrade(empty_database_url, "base")
    finally:
        await connection.close()
    assert "runs" in await _tables(empty_database_url)


async def test_a_database_knows_which_it_is_from_the_beginning(empty_database_url: str) -> None:
    """A copy from before its coordinator's first start is a copy too: no `stop` run is granted on it at once (S3)."""
    await migrate.upgrade(empty_database_url)
    async with connect_database(empty_database_url) as db, db.connection() as conn:
        itself = await deployment.read_identity(conn)
        assert (await deployment.read_withholding(conn)) == (False, itself)
        await conn.execute("UPDATE deployment SET timeline = timeline + 1")
    await migrate.downgrade(empty_database_url, "0003")
    await migrate.upgrade(empty_database_url)
    async with connect_database(empty_database_url) as db, db.connection() as conn:
        _, known = await deployment.read_withholding(conn)
        assert known == replace(itself, timeline=itself.timeline + 1), "what it knew is not written over"
        assert await deployment.are_stop_runs_withheld(conn)

"""The way to Postgres: every connection leads to the database of one deployment, or to none."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest

from coordinator.database.connections import Database, DatabaseAway, connect_database

WAYS: list[Callable[[Database], AbstractAsyncContextManager[object]]] = [
    Database.connection,
    Database.begin,
    Database.dedicated,
]


async def end_others(connection: asyncpg.Connection) -> None:
    """Ends every other connection to its database."""
    await connection.execute(
        """SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    )


async def refusal(way: Callable[[Database], AbstractAsyncContextManager[object]], database: Database) -> str:
    """Why the database is refused; what a connection that was ended meanwhile says is no answer, so ask again."""
    async with asyncio.timeout(90):
        while True:
            try:
                async with way(database):
                    return ""
            except DatabaseAway as away:
                if away.__cause__ is None:
                    return str(away)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "swap", ["UPDATE deployment SET deployment_id = gen_random_uuid()", "ALTER TABLE deployment RENAME TO gone"]
)
async def test_another_database_in_its_place_is_none(
    empty_database_url: str, way: Callable[[Database], AbstractAsyncContextManager[object]], swap: str
) -> None:
    """F9: a foreign or an empty one knows nothing of any lease. The right one is taken again when it is back."""
    other = await asyncpg.connect(empty_database_url)
    await other.execute("CREATE TABLE deployment (deployment_id uuid)")
    await other.execute("INSERT INTO deployment VALUES (gen_random_uuid())")
    ours = await other.fetchval("SELECT deployment_id FROM deployment")
    async with connect_database(empty_database_url) as database:
        await database.ping()
        await other.execute(swap)
        await end_others(other)
        assert "not that of" in await refusal(way, database)
        if "gone" in swap:
            await other.execute("ALTER TABLE gone RENAME TO deployment")
        await other.execute("UPDATE deployment SET deployment_id = $1", ours)
        async with way(database):
            pass
    await other.close()


async def test_who_waits_is_woken_after_an_interruption_and_hears_what_follows(empty_database_url: str) -> None:
    other = await asyncpg.connect(empty_database_url)
    async with (
        connect_database(empty_database_url) as database,
        database.notifications.subscribe("relay_runs", "r") as announced,
        asyncio.timeout(60),
    ):
        await announced.wait()  # it listens
        for _ in range(3):
            announced.clear()
            await end_others(other)
            await announced.wait()  # it listens again, and something may have been missed
            announced.clear()
            await other.execute("NOTIFY relay_runs, 'r'")
            await announced.wait()
    await other.close()

"""Another database takes the place of the one there was: restored from a dump, foreign, or empty (F9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from coordinator.database import migrate
from tests.end_to_end.fleet import Fleet
from tests.faults.database.clusters import DATABASE, Server, Site
from tests.faults.database.expectations import expect_undisturbed, is_refused, start_training, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.rotating(2, of="faults of the database")]
Restore = Callable[[Site, str], Awaitable[None]]


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def one_server_is_left(site: Site) -> AsyncIterator[None]:
    """One server is left for the next test."""
    yield
    await site.remove_others()


async def in_a_new_database(site: Site, dump: str) -> None:
    """Restored beside it, and renamed while nobody is connected."""
    server = site.primary
    await server.run("createdb", "restored")
    await server.run("pg_restore", "--dbname=restored", dump)
    site.turn_away()
    await server.query(
        "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity WHERE datname = $1",
        DATABASE,
        database="postgres",
    )
    await server.query(f"DROP DATABASE {DATABASE}", database="postgres")
    await server.query(f"ALTER DATABASE restored RENAME TO {DATABASE}", database="postgres")
    site.turn_to(server)


async def in_a_new_cluster(site: Site, dump: str) -> None:
    """As after the loss of a machine."""
    server = await site.server()
    await server.run("pg_restore", f"--dbname={DATABASE}", dump)
    site.turn_to(server)


@pytest.mark.parametrize("restore", [in_a_new_database, in_a_new_cluster])
async def test_a_dump_takes_its_place(fleet: Fleet, site: Site, restore: Restore) -> None:
    """All leases end, agents drop what they hold, the run resumes from the head that the dump knows (S1, S2, S6)."""
    await fleet.host("a")
    run = await start_training(fleet, 3)
    dump = str(site.primary.cluster.folder / "dump")
    await site.primary.run("pg_dump", "--format=custom", f"--file={dump}", DATABASE)
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await run.checkpoint(4)
    old = (await run.attempts())[-1]
    await restore(site, dump)
    await fleet.conductor.until(lambda me: len(me.trainers) == 2)
    assert await is_refused(fleet, old.name)
    assert await site.primary.query("SELECT stop_grants_after FROM deployment")
    await fleet.conductor.allow(8)
    await succeeded(run)
    assert [each.resumed_from for each in fleet.conductor.trainers] == [0, 2]
    assert "the database was restored from a copy" in [each.reason for each in await run.attempts()]
    await run.has_one_curve(8)


async def foreign(site: Site) -> Server:
    """Another deployment's database."""
    server = await site.server()
    await migrate.upgrade(server.url())
    return server


async def make_empty_server(site: Site) -> Server:
    """A database that nobody has migrated."""
    return await site.server()


async def test_replicas_know_their_database(fleet: Fleet, site: Site) -> None:
    """A foreign one or an empty one in its place is none: agents wait, and when it is back nothing has changed."""
    await fleet.host("a")
    run = await start_training(fleet, 3)
    right = site.primary
    for step, (other, answers) in enumerate(((foreign, "[0-9a-f-]+"), (make_empty_server, "None")), 4):
        site.turn_to(await other(site))
        await fleet.conductor.allow(step)
        await fleet.conductor.reached(step)
        for replica in fleet.deployment.replicas:
            assert replica.daemon is not None
            await replica.daemon.seen(f"of deployment {answers} answers, not that of")
    site.turn_to(right)
    await expect_undisturbed(fleet, run, 8)


async def test_agents_know_their_deployment(fleet: Fleet, site: Site) -> None:
    """Replicas are started with a wrong database: they get nothing from agents with trainers, which go on."""
    host = await fleet.host("a")
    run = await start_training(fleet, 3)
    replicas = fleet.deployment.replicas
    right = site.primary
    await asyncio.gather(*(replica.stop() for replica in replicas))
    site.turn_to(await foreign(site))
    await asyncio.gather(*(replica.start() for replica in replicas))
    await fleet.conductor.allow(7)
    await fleet.conductor.reached(7)
    assert host.daemon is not None
    await host.daemon.seen("this is deployment")
    assert await site.primary.query("SELECT count(*) FROM agents") == 0
    await asyncio.gather(*(replica.stop() for replica in replicas))
    site.turn_to(right)
    await asyncio.gather(*(replica.start() for replica in replicas))
    await expect_undisturbed(fleet, run, 8)

"""Wall clocks that are wrong by an hour and leap, of the database, the replicas and the hosts: no effect (F13).

Deadlines are sent as durations, hosts count them on CLOCK_BOOTTIME, and where the database's clock decides, the reaper
sees it leap and lets nothing lapse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from relayctl.local.deployment import LocalHost
from tests.end_to_end.fixtures import short_folder
from tests.end_to_end.fleet import Deployment, Fleet, Kind, Watched, deployed
from tests.faults.database.clocks import HOUR, Clock, library
from tests.faults.database.clusters import Site, site_in
from tests.faults.database.expectations import expect_undisturbed, start_training, succeeded
from tests.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.rotating(2, of="faults of the database")]
TTL = 3.0  # of the test profile


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clock]:
    """Of everything there is."""
    found = library()
    if found is None:
        pytest.skip("libfaketime is neither installed nor to be had from the package registry")
    folder = tmp_path_factory.mktemp("clocks")
    return {name: Clock(found, folder / name) for name in ("postgres", "replica-1", "replica-2", "host")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(clocks: dict[str, Clock]) -> AsyncIterator[Site]:
    """A database with a clock of its own."""
    with short_folder() as folder:
        async with site_in(Path(folder), env=clocks["postgres"].env) as made:
            yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(site: Site, clocks: dict[str, Clock]) -> AsyncIterator[Deployment]:
    """Replicas with clocks of their own."""
    with short_folder() as folder:
        async with deployed(Path(folder), site.url) as made:
            for replica in made.replicas:
                replica.env = clocks[replica.name].env
            yield made


@pytest.fixture(autouse=True)
def right(clocks: dict[str, Clock]) -> None:
    """All clocks are, at first."""
    for clock in clocks.values():
        clock.set(0)


async def host_of(fleet: Fleet, name: str, clock: Clock, via: str = "") -> LocalHost:
    """A host that goes by this clock."""
    host = fleet.new_host(name, via=via)
    host.env = clock.env
    await host.start()
    return host


async def test_clocks_leap(fleet: Fleet, site: Site, clocks: dict[str, Clock]) -> None:
    """The database's one way, all others the other way, back, and right again, each for longer than a lease lasts."""
    fleet.steady = False
    await host_of(fleet, "a", clocks["host"])
    run = await start_training(fleet, 3)
    for step, ahead in enumerate((HOUR, -HOUR, 0), 4):
        for name, clock in clocks.items():
            clock.set(ahead if name == "postgres" else -ahead)
        told = await site.primary.query("SELECT extract(epoch FROM clock_timestamp())::float8")
        assert round((told - time.time()) / HOUR) == ahead / HOUR
        asyncio.get_running_loop().call_later(1.1 * TTL, asyncio.create_task, fleet.conductor.allow(step))
        await fleet.conductor.reached(step)
    await expect_undisturbed(fleet, run, 8)


async def test_a_host_dies_as_the_clock_is_set_back(fleet: Fleet, clocks: dict[str, Clock]) -> None:
    """The run goes elsewhere a few leases later, whatever times the database had noted (L1)."""
    fleet.steady = False
    first = await host_of(fleet, "a", clocks["host"])
    run = await start_training(fleet, 3)
    await fleet.host("b")
    clocks["postgres"].set(-HOUR)
    await first.vanish()
    await goes_on(fleet, run, clocks["postgres"])


async def test_no_leap_puts_off_a_deadline(fleet: Fleet, clocks: dict[str, Clock]) -> None:
    """Under `stop` a host that is cut off kills in time, whatever its own clock says (S3)."""
    async with Proxy([fleet.proxy.address]) as line:
        await host_of(fleet, "a", clocks["host"], via=line.address)
        run = await start_training(fleet, 3, lifecycle={"on_disconnect": "stop"})
        line.blackhole()
        clocks["host"].set(-HOUR)
        await fleet.host("b")  # not before: on a busy machine the run could have gone there by itself
        await goes_on(fleet, run, clocks["host"])
        cut_off, successor = fleet.conductor.trainers[-2:]
        assert cut_off.ended < successor.began


async def goes_on(fleet: Fleet, run: Watched, clock: Clock) -> None:
    """Another attempt begins, not an hour later, and trains to the end, by then with a clock that is right."""
    first = fleet.conductor.trainers[-1]
    await run.until(lambda event: event.kind == Kind.STARTED and event.attempt > first.attempt)
    clock.set(0)
    await fleet.conductor.allow(8)
    await succeeded(run)
    await run.has_one_curve(8)

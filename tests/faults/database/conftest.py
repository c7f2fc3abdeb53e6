"""Every module has a Postgres of its own, behind one address, and two replicas that live through what is done to it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.end_to_end.fixtures import share_the_loop, short_folder
from tests.end_to_end.fleet import Deployment, Fleet, deployed, fleet_of
from tests.faults.database.clusters import Site, site_in


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """The database, whichever server is behind it."""
    with short_folder() as folder:
        async with site_in(Path(folder)) as made:
            yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(site: Site) -> AsyncIterator[Deployment]:
    """Two replicas."""
    with short_folder() as folder:
        async with deployed(Path(folder), site.url) as made:
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(deployment: Deployment) -> AsyncIterator[Fleet]:
    """What a test sees and breaks; no replica may end by it."""
    with short_folder() as folder:
        async with fleet_of(deployment, Path(folder)) as made:
            yield made
            assert all(replica.alive for replica in deployment.replicas)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    share_the_loop(items, Path(__file__).parent)

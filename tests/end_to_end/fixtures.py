"""Every module has a deployment, and every test its own hosts, folder, line and empty database.

For the conftest of each folder that tests deployments.
"""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.database import postgres
from tests.conftest import cloned
from tests.end_to_end.fleet import Deployment, Fleet, deployed, fleet_of


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Unix socket paths hold at most 107 bytes."""
    return tempfile.TemporaryDirectory(prefix="relay-e2e-")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(postgres_server: postgres.Cluster) -> AsyncIterator[Deployment]:
    """Two replicas; what a test kills of them, the next one starts again."""
    with short_folder() as folder:
        async with cloned(postgres_server) as database_url, deployed(Path(folder), database_url) as made:
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(deployment: Deployment) -> AsyncIterator[Fleet]:
    """What a test sees and breaks: it shares no folder with the replicas."""
    with short_folder() as folder:
        async with fleet_of(deployment, Path(folder)) as made:
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def patient_fleet(postgres_server: postgres.Cluster) -> AsyncIterator[Fleet]:
    """One whose leases last as long as they do by default: none lapses because the machine is busy."""
    with short_folder() as folder, short_folder() as hosts:
        async with (
            cloned(postgres_server) as database_url,
            deployed(Path(folder), database_url, "default") as deployment,
            fleet_of(deployment, Path(hosts)) as made,
        ):
            yield made


def share_the_loop(items: list[pytest.Item], folder: Path) -> None:
    """A module's tests share its deployment, and so its event loop."""
    for item in items:
        if item.path.parent == folder:
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)

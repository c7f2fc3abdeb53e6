"""The worlds that the tests of leases and sessions live in."""

from collections.abc import AsyncIterator

import pytest

from coordinator.config import Config
from coordinator.database.connections import Database, connect_database
from tests.conftest import PATIENT
from tests.coordinator import fleet


@pytest.fixture
async def world(coordinator_config: Config) -> AsyncIterator[fleet.World]:
    """A coordinator with the timing of production, its database, and a hand on its clock."""
    async with fleet.world(coordinator_config) as made:
        yield made


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """An empty database, without a coordinator that would act on its own."""
    async with connect_database(database_url, timeouts=PATIENT) as made:
        yield made

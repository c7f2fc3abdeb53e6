"""The world that the tests of leases and sessions live in."""

from collections.abc import AsyncIterator

import pytest

from coordinator.config import Config
from tests.coordinator import fleet


@pytest.fixture
async def world(coordinator_config: Config) -> AsyncIterator[fleet.World]:
    """A coordinator with the timing of production, its database, and a hand on its clock."""
    async with fleet.world(coordinator_config) as made:
        yield made

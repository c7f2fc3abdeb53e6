"""Hosts and gates for the tests of the agent."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.fake_coordinator import FakeCoordinator, running
from tests.agent.hosts import Gate, Host


@pytest.fixture
async def fake() -> AsyncIterator[FakeCoordinator]:
    """A coordinator that the test scripts."""
    async with running() as made:
        yield made


@pytest.fixture
def gate(short_tmp_path: Path) -> Gate:
    return Gate(short_tmp_path / "gate")


@pytest.fixture
async def hosts(short_tmp_path: Path) -> AsyncIterator[Any]:
    """Makes hosts; all of them vanish at the end."""
    made: list[Host] = []

    def make(address: str, *arguments: str) -> Host:
        folder = short_tmp_path / f"h{len(made)}"
        folder.mkdir()
        made.append(Host(folder, address, list(arguments)))
        return made[-1]

    yield make
    for host in made:
        await host.vanish()

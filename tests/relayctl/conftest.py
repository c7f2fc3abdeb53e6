"""A deployment that all tests of a worker share: the names of their runs must differ."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relayctl.deployed import up


@pytest.fixture(scope="session")
def folder() -> Path:
    """The folder of the deployment; its path is short, for Unix sockets are in it."""
    return Path(tempfile.mkdtemp(prefix="relay-up-"))


@pytest.fixture(scope="session")
def deployment(folder: Path) -> Iterator[str]:
    """The address of a coordinator with one agent."""
    with up(folder) as address:
        yield address


@pytest.fixture
def environment(deployment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands talk to the deployment."""
    monkeypatch.setenv("RELAY_COORDINATOR", deployment)

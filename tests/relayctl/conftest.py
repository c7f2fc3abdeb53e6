"""A deployment for each module that wants one."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relayctl.deployed import up


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the deployment keeps its things; short, for Unix sockets lie in it."""
    return Path(tempfile.mkdtemp(prefix="relay-up-"))


@pytest.fixture(scope="module")
def deployment(folder: Path) -> Iterator[str]:
    """The address of a coordinator with one agent."""
    with up(folder) as address:
        yield address


@pytest.fixture
def environment(deployment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands are told of the deployment."""
    monkeypatch.setenv("RELAY_COORDINATOR", deployment)

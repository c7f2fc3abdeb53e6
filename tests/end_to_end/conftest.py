"""Every end-to-end test gets a deployment of its own."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.end_to_end.fleet import Fleet, deployed


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[Fleet]:
    """Two replicas behind a proxy. In a short folder: Unix socket paths hold at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="relay-e2e-"))
    try:
        async with deployed(folder, database_url) as fleet:
            yield fleet
    finally:
        shutil.rmtree(folder)

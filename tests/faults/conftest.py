"""Deployments of real processes, to be broken."""

from pathlib import Path

import pytest

from tests.end_to_end.fixtures import deployment, fleet, patient_fleet, share_the_loop

__all__ = ["deployment", "fleet", "patient_fleet"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    share_the_loop(items, Path(__file__).parent)

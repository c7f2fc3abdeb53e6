"""Agents, shims, trainers, replicas and Postgres are killed at random moments, and other things happen (S1 to S10).

A dozen of the hundred that `make kills` does, and of what `make soak` does for hours: nothing is lost, nothing doubled,
every run ends with one curve, and no process is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.end_to_end.fixtures import short_folder
from tests.end_to_end.fleet import Deployment
from tests.faults import schedule
from tests.faults.chaos import BREAKS
from tests.faults.database.clusters import Site
from tests.faults.soak import one_round

pytestmark = [pytest.mark.slow, pytest.mark.rotating(2, of="faults of the database")]
SEED = "a dozen"


@pytest.mark.parametrize("faults", [schedule.KILLS, schedule.FAULTS], ids=["kills", "all"])
async def test_a_dozen_faults_over_four_runs(
    deployment: Deployment, site: Site, faults: Sequence[schedule.Fault]
) -> None:
    """F1, F2, F5, F7; and F3, F4, F10, F12."""
    plan = schedule.plan(SEED, faults, strikes=12, runs=4, seconds=8.0, lasts=(schedule.SHORT,))
    with short_folder() as folder:
        await one_round(deployment, site, Path(folder) / "1", plan, hosts=2)


async def test_the_seed_decides() -> None:
    """So that what went wrong once can be tried again."""
    again = schedule.plan(SEED, schedule.FAULTS, strikes=50, runs=4, seconds=10.0)
    assert again == schedule.plan(SEED, schedule.FAULTS, strikes=50, runs=4, seconds=10.0)
    assert again != schedule.plan("another", schedule.FAULTS, strikes=50, runs=4, seconds=10.0)
    assert {strike.fault for strike in again.strikes} == set(schedule.Fault) == set(BREAKS)

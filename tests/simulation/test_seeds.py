"""Two thousand seeds without a violation (S1 to S10, L1 to L6); every seed the same each time, wherever it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.simulate import simulate

SEEDS, CHUNK = 2000, 50


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + CHUNK):
        verdict = simulate(seed)
        assert not verdict.violations, f"{verdict.violations}: python -m tests.simulation one {seed}"


def test_a_seed_always_does_the_same() -> None:
    """Another process, whose sets and dictionaries of text are in another order, comes to the same trace."""
    seeds = [3, 7]
    code = f"from tests.simulation.simulate import simulate\nfor seed in {seeds}: print(simulate(seed).trace)"
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": f"{root}:{root / 'proto'}"}
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    traces = [simulate(seed).trace for seed in seeds]
    assert other.stdout.split() == traces and len(set(traces)) == 2

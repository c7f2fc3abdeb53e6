"""Seeds without a violation (S1 to S10, L1 to L6); every seed the same each time, wherever it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.simulation.corpus import KNOWN
from tests.simulation.simulate import simulate
from tests.tiers import Tier

#: An exception in the middle of a simulated world would be taken for one of its own.
pytestmark = pytest.mark.timeout(900, method="thread")

DRAWN = 150  #: seeds that a commit draws beside the corpus
CHUNK = 10  #: seeds a test: seconds, where the time limit is minutes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" in metafunc.fixturenames:
        seeds = chosen(Tier(metafunc.config), metafunc.config)
        chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
        metafunc.parametrize("seeds", chunks, ids=[f"{chunk[0]}..{chunk[-1]}" for chunk in chunks])


def chosen(tier: Tier, config: pytest.Config) -> Sequence[int]:
    """Return the seeds to simulate: everything from 0 in the thorough tier, the corpus and those drawn on a commit."""
    if tier.thorough:
        return sorted({*range(config.getoption("--seeds")), *KNOWN})
    return [*KNOWN, *tier.random("seeds").sample(range(20_000, 1_000_000), DRAWN)]


def test_no_seed_breaks_a_promise(seeds: Sequence[int]) -> None:
    for seed in seeds:
        violations = simulate(seed).violations
        assert not violations, (
            f"seed {seed} breaks a promise: {violations}\n"
            f"again, with all that happens: .venv/bin/python -m tests.simulation one {seed}\n"
            + ("" if seed in KNOWN else f"once it is understood, seed {seed} belongs in tests/simulation/corpus.py")
        )


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

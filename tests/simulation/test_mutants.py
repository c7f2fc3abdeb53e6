"""A simulator proves nothing until it notices that a rule is gone: by the known seed, and by a new hunt."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import first_caught, mutated
from tests.simulation.corpus import CATCHES
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.simulate import simulate

#: An exception in the middle of a simulated world would be taken for one of its own.
pytestmark = pytest.mark.timeout(900, method="thread")

ENOUGH = 400  #: seeds
PATIENCE = 40.0  #: seconds of virtual time, after which a run that has not ended is stuck
NAMES = [each.name for each in MUTANTS if not each.spare]


def mutant_of(name: str) -> Mutant:
    return next(each for each in MUTANTS if each.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_of_a_mutant_catches_it(name: str) -> None:
    mutant, seeds = mutant_of(name), CATCHES[name]
    seed = next((each for each in seeds if mutated(name, each, PATIENCE).violations), None)
    assert seed is not None, (
        f"each of the seeds {seeds} is clean without: {mutant.rule}\n"
        f"find another one for tests/simulation/corpus.py: .venv/bin/python -m tests.simulation mutants {name}"
    )
    assert not simulate(seed, mutant.kinds, PATIENCE).violations, f"seed {seed} breaks a promise with: {mutant.rule}"


@pytest.mark.thorough
@pytest.mark.timeout(3600, method="thread")
@pytest.mark.parametrize("name", NAMES)
def test_without_its_rule_a_seed_breaks_a_promise(name: str) -> None:
    assert first_caught(name, ENOUGH) is not None, f"nothing breaks without: {mutant_of(name).rule}"

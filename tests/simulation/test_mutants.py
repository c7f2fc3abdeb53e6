"""A simulator proves nothing until it notices that a rule is gone: each is removed, and a seed shows it."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import first_caught
from tests.simulation.mutants import MUTANTS, Mutant

ENOUGH = 120  #: seeds; `make mutants` says how many each really takes


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if not each.spare], ids=lambda each: each.name)
def test_without_its_rule_a_seed_breaks_a_promise(mutant: Mutant) -> None:
    verdict = first_caught(mutant.name, ENOUGH)
    assert verdict is not None, f"nothing breaks without: {mutant.rule}"

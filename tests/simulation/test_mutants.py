"""A simulator proves nothing until it notices that a rule is gone: the quick ones here, all by `make mutants`."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import first_caught
from tests.simulation.mutants import MUTANTS

ENOUGH = 80  #: seeds; they take ten or so
QUICK = (
    *("no_deadline", "no_outage_grace", "no_wish_version", "version_not_raised"),
    *("clones_admitted", "replaced_come_back"),
    *("unfenced_publish", "unfenced_completion", "unfenced_events"),
    *("only_copy_let_go", "head_behind_a_fallback", "nothing_superseded", "resume_from_the_oldest"),
    *("cursor_outside", "acked_before_commit", "gaps_taken", "overlaps_taken", "events_before_start"),
    *("ids_reused", "sessions_outlive_failover", "welcome_unheard", "first_write_not_repeated"),
    "unknown_until_first_look",
)


@pytest.mark.parametrize("name", QUICK)
def test_without_its_rule_a_seed_breaks_a_promise(name: str) -> None:
    mutant = next(each for each in MUTANTS if each.name == name)
    assert first_caught(name, ENOUGH) is not None, f"nothing breaks without: {mutant.rule}"

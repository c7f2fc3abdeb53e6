"""Decides from what a deployment recorded whether S1 to S10 held. Pure: it maps rows to violations.

The rules rely on a run's numbered history for the order of events, not on clocks, and share no code with the
coordinator: its mistakes must not become theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.history import curve, leasing
from tests.history.index import Finding, History, Violation
from tests.history.record import Recorded, Witness

Rule = Callable[[History], Finding]

RULES: Mapping[str, tuple[Rule, ...]] = {
    "S1": (leasing.each_grant_is_a_lease_of_its_own, leasing.one_lease_at_a_time),
    "S2": (
        leasing.nothing_is_written_without_the_lease,
        leasing.nothing_is_written_after_the_end,
        leasing.nothing_is_written_for_others,
    ),
    "S3": (leasing.under_stop_one_executes,),
    "S4": (curve.copies_are_written_once,),
    "S5": (curve.heads_are_fenced, curve.heads_come_after_their_events, curve.steps_grow_along_the_curve),
    "S6": (
        leasing.an_attempt_begins_by_saying_from_where,
        curve.attempts_resume_from_the_newest,
        curve.what_came_after_is_superseded,
        curve.starts_are_as_told,
    ),
    "S7": (
        curve.cursors_stand_where_they_can,
        curve.logs_are_whole,
        curve.points_are_those_of_the_files,
        curve.there_is_one_curve,
        curve.the_curve_is_true,
    ),
    "S8": (
        leasing.states_follow_each_other,
        leasing.a_run_runs_while_it_is_leased,
        leasing.a_run_ends_by_its_holder_or_an_operator,
    ),
    "S9": (leasing.a_slot_has_one_lease, leasing.a_submission_makes_one_run),
    "S10": (leasing.a_directive_is_followed_once,),
}


def violations(
    recorded: Recorded, witness: Witness | None = None, *, but: frozenset[Rule] = frozenset()
) -> list[Violation]:
    """Every promise that was not kept, by property; `but` are rules that a test breaks on purpose."""
    history = History(recorded, witness or Witness())
    return [
        Violation(name, run, text)
        for name, rules in RULES.items()
        for rule in rules
        if rule not in but
        for run, text in rule(history)
    ]

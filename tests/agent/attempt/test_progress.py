"""Step times, the next boundary, stalls."""

import re
from pathlib import Path

import pytest

from agent.attempt.progress import LEAST, OTHER_PHASE, PHASE_LIMITS, STARTING, TRAINING, TrainerProgress

EVENTS = Path(__file__).parents[3] / "docs" / "events.md"
PHASES = {**PHASE_LIMITS, "tuning": OTHER_PHASE}


def test_the_next_step_ends_when_steps_of_late_say() -> None:
    progress = TrainerProgress("auto", 0.0)
    assert progress.seconds_to_step_end(1.0) is None
    for step in range(1, 6):
        progress.record_step(step, 10.0 * step)
    assert progress.step_time == 10.0
    assert progress.seconds_to_step_end(53.0) == 7.0
    assert progress.seconds_to_step_end(99.0) == 0.0


def test_logging_every_tenth_step_is_no_slow_step() -> None:
    progress = TrainerProgress("auto", 0.0)
    for step in (10, 20, 30):
        progress.record_step(step, float(step))
    assert progress.step_time == 1.0


def test_what_was_read_back_says_nothing_of_speed() -> None:
    progress = TrainerProgress("auto", 0.0)
    for step in (1, 2, 3):
        progress.record_step(step, 5.0, live=False)
    assert progress.step == 3 and progress.step_time is None and progress.seconds_to_step_end(6.0) is None


def test_a_stated_limit_is_kept() -> None:
    """L5."""
    progress = TrainerProgress(60.0, 0.0)
    progress.record_step(1, 10.0)
    progress.record_write(65.0)  # talk is no progress once there are steps
    assert not progress.describe_stall(69.0)
    assert "after step 1" in progress.describe_stall(70.0)


def test_auto_is_generous_and_learns() -> None:
    progress = TrainerProgress("auto", 0.0)
    assert progress.limit == STARTING
    progress.record_step(1, 1.0)
    assert progress.limit == LEAST
    progress.record_step(2, 101.0)
    assert progress.limit == 2000.0  # twenty steps
    progress.record_step(3, 1101.0)
    assert progress.limit == 20_000.0


def test_a_program_that_reports_no_steps_is_never_stalled_by_itself() -> None:
    progress = TrainerProgress("auto", 0.0, contract=False)
    assert progress.limit is None and not progress.describe_stall(1e9)


def test_steps_that_repeat_are_no_progress() -> None:
    progress = TrainerProgress(10.0, 0.0)
    progress.record_step(5, 1.0)
    progress.record_step(5, 9.0)
    progress.record_step(4, 9.0)
    assert progress.describe_stall(12.0)


@pytest.mark.parametrize(("phase", "limit"), PHASES.items())
def test_a_phase_has_its_own_limit(phase: str, limit: float) -> None:
    """L5: longer than a step may take, and a program that hangs in it is found all the same."""
    progress = TrainerProgress("auto", 0.0)
    progress.record_step(7, 10.0)
    assert progress.describe_stall(10.0 + LEAST)
    progress.record_phase(phase, 0, 20.0)
    assert not progress.describe_stall(20.0 + limit - 1)
    stalled = progress.describe_stall(20.0 + limit)
    assert f"in phase {phase} (0 done) after step 7" in stalled and f"limit {limit:.0f} s" in stalled


@pytest.mark.parametrize(("phase", "limit"), PHASES.items())
def test_a_phase_that_advances_may_take_for_ever(phase: str, limit: float) -> None:
    progress, now = TrainerProgress("auto", 0.0), 0.0
    for done in range(100):
        now += limit - 1
        assert not progress.describe_stall(now)
        progress.record_phase(phase, done, now)
    progress.record_phase(phase, 99, now + limit - 1)  # says the same again
    assert progress.describe_stall(now + 3 * limit)


@pytest.mark.parametrize(("phase", "limit"), PHASES.items())
def test_a_limit_is_learnt_from_the_phase_itself(phase: str, limit: float) -> None:
    """One that took half an hour longer than was thought, under a stated limit, say, may do so again."""
    progress = TrainerProgress("auto", 0.0)
    progress.record_step(1, 0.0)
    progress.record_phase(phase, 1, 0.0)
    progress.record_step(2, limit)
    progress.record_phase(phase, 2, limit + 1)
    assert progress.limit == 3 * limit
    progress.record_phase(TRAINING, 0, limit + 2)
    assert progress.limit is not None and progress.limit >= LEAST


def test_going_round_in_circles_is_no_progress() -> None:
    """S.t. evaluates, goes on training and evaluates again, and never makes a step."""
    progress, now = TrainerProgress("auto", 0.0), 0.0
    progress.record_step(1, now)
    while not progress.describe_stall(now):
        now += 100.0
        assert now < 10_000.0
        progress.record_phase("evaluating", 1, now)
        progress.record_phase(TRAINING, 0, now + 50.0)
    progress.record_step(2, now)
    assert not progress.describe_stall(now)
    progress.record_phase("evaluating", 1, now + 1)
    assert not progress.describe_stall(now + LEAST)


@pytest.mark.parametrize(("phase", "limit"), PHASES.items())
def test_who_repeats_itself_is_found(phase: str, limit: float) -> None:
    """A hung program's own heartbeat neither counts nor raises the limit."""
    progress = TrainerProgress("auto", 0.0)
    progress.record_step(1, 0.0)
    for minute in range(1, 600):
        progress.record_phase(phase, 3, 60.0 * minute)
    assert progress.limit == limit and progress.describe_stall(60.0 * 600)


def test_the_end_of_a_phase_is_progress() -> None:
    progress = TrainerProgress("auto", 0.0)
    progress.record_step(1, 0.0)
    progress.record_phase("saving", 1, 10.0)
    progress.record_phase(TRAINING, 0, 1000.0)
    assert not progress.describe_stall(1000.0 + LEAST - 1)


def test_a_stated_limit_holds_for_phases() -> None:
    progress = TrainerProgress(60.0, 0.0)
    progress.record_step(1, 0.0)
    progress.record_phase("loading", 0, 10.0)
    assert not progress.describe_stall(69.0) and progress.describe_stall(70.0)


def test_phases_that_were_read_back_teach_no_limit() -> None:
    progress = TrainerProgress("auto", 0.0)
    progress.record_phase("evaluating", 1, 0.0, live=False)
    progress.record_phase("evaluating", 2, 9000.0, live=False)
    assert progress.limit == PHASE_LIMITS["evaluating"] and progress.phase == "evaluating"


def test_the_documented_limits_are_those_in_force() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", EVENTS.read_text(), re.MULTILINE)
    assert {phase: float(seconds) for phase, seconds in rows} == PHASE_LIMITS
    assert f"| any other name | {OTHER_PHASE:.0f} |" in EVENTS.read_text()

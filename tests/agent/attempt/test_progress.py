"""Step times, the next boundary, stalls."""

from agent.attempt.progress import LEAST, STARTING, TrainerProgress


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

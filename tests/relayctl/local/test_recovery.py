"""What a run's record says about the loss of a host, read off messages made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from relay.v1 import runs_pb2 as pb
from relayctl.local.recovery import measure_recovery

LOST = 1000.0  #: when the host was lost
RUN = "runs/r/leases/"


def attempt(name: str, resumed: int = 0, kept: int | None = None) -> pb.Attempt:
    made = pb.Attempt(name=RUN + name, resumed_step=resumed)
    if kept is not None:
        made.kept_until_step = kept
    return made


def stretch(name: str, steps: Sequence[int], start: float) -> pb.ReadMetricsResponse:
    """Points of one attempt, a second apart from `start` on."""
    times = [start + number for number in range(len(steps))]
    return pb.ReadMetricsResponse(
        metric="train_loss", lease=RUN + name, steps=steps, values=[0.5] * len(steps), times=times
    )


def test_saved_before_it_was_lost_nothing_is_trained_twice() -> None:
    stretches = [stretch("a", range(1, 7), 990), stretch("b", range(7, 11), 1040)]
    found = measure_recovery(stretches, [attempt("a"), attempt("b", resumed=6)], LOST)
    assert (found.trained, found.twice, found.resumed_step, found.one_curve) == (10, 0, 6, True)
    assert found.first_step == found.beyond == 40


def test_steps_past_the_checkpoint_are_trained_twice_and_count_once() -> None:
    """S6: the points that the second attempt replaced are there and not of the curve."""
    stretches = [stretch("a", range(1, 10), 990), stretch("b", range(7, 12), 1040)]
    found = measure_recovery(stretches, [attempt("a", kept=6), attempt("b", resumed=6)], LOST)
    assert (found.trained, found.twice, found.resumed_step, found.one_curve) == (11, 3, 6, True)
    assert (found.first_step, found.beyond) == (40, 43)  # step 10 is the first that the lost host had not done


def test_stretches_may_come_in_pieces_and_any_order() -> None:
    stretches = [stretch("b", [9, 10], 1042), stretch("a", [4, 5, 6, 7], 993), stretch("b", [7, 8], 1040)]
    stretches.append(stretch("a", [1, 2, 3], 990))
    found = measure_recovery(stretches, [attempt("a", kept=6), attempt("b", resumed=6)], LOST)
    assert (found.trained, found.twice, found.one_curve) == (10, 1, True)


def test_a_point_that_arrived_in_two_stretches_with_its_time_is_one() -> None:
    stretches = [stretch("a", [1, 2], 990), stretch("a", [1, 2], 990), stretch("b", [3], 1040)]
    assert measure_recovery(stretches, [attempt("a"), attempt("b", resumed=2)], LOST).trained == 3


def test_begun_anew_everything_the_lost_host_did_is_trained_twice() -> None:
    stretches = [stretch("a", [1, 2, 3], 990), stretch("b", [1, 2, 3, 4], 1040)]
    found = measure_recovery(stretches, [attempt("a", kept=0), attempt("b")], LOST)
    assert (found.trained, found.twice, found.resumed_step, found.one_curve) == (4, 3, 0, True)


def test_a_curve_with_a_gap_is_not_one_curve() -> None:
    stretches = [stretch("a", [1, 2, 3], 990), stretch("b", [5, 6], 1040)]
    assert not measure_recovery(stretches, [attempt("a"), attempt("b", resumed=3)], LOST).one_curve


def test_a_curve_with_a_step_twice_is_not_one_curve() -> None:
    stretches = [stretch("a", [1, 2, 3], 990), stretch("b", [3, 4], 1040)]
    assert not measure_recovery(stretches, [attempt("a"), attempt("b", resumed=2)], LOST).one_curve


def test_of_an_attempt_that_has_done_no_step_yet_no_time_is_known() -> None:
    found = measure_recovery([stretch("a", [1, 2], 990)], [attempt("a"), attempt("b", resumed=2)], LOST)
    assert math.isnan(found.first_step) and math.isnan(found.beyond)
    assert (found.trained, found.one_curve) == (2, True)


def test_repeating_what_was_lost_is_not_yet_new_ground() -> None:
    stretches = [stretch("a", [1, 2, 3], 990), stretch("b", [2, 3], 1040)]
    found = measure_recovery(stretches, [attempt("a", kept=1), attempt("b", resumed=1)], LOST)
    assert found.first_step == 40 and math.isnan(found.beyond)


def test_an_attempt_between_the_first_and_the_last_is_of_the_curve() -> None:
    """Lost twice: a second host that only repeated steps, and a third that finished."""
    stretches = [stretch("a", range(1, 8), 990), stretch("b", [5, 6], 1040), stretch("c", range(6, 10), 1090)]
    attempts = [attempt("a", kept=4), attempt("b", resumed=4, kept=5), attempt("c", resumed=5)]
    found = measure_recovery(stretches, attempts, LOST)
    assert (found.trained, found.twice, found.one_curve) == (9, 2, True)

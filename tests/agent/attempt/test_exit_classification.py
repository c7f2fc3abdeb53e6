"""What an end means, and what a failure is called."""

import errno
import os
from typing import Any

import pytest

from agent.attempt.exit_classification import (
    LAST_BYTES,
    LAST_LINES,
    FailureCause,
    StopCause,
    StopDirective,
    Success,
    classify_exit,
    classify_failure,
    last_lines,
)
from agent.shim_client.jobs import Exit

OOM = "Traceback\n  File x\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
REQUESTED = StopDirective(StopCause.REQUESTED, 10.0, "cancelled")


def classify(order: StopDirective | None = None, *, command: bool = False, stalled: str = "", **ended: Any) -> object:
    result = classify_exit(Exit(lease="l", **ended), directive=order, command=command, stalled=stalled)
    match result:
        case FailureCause():
            return result.reason
        case Success():
            return "SUCCESS"
    return result


@pytest.mark.parametrize("command", [True, False])
def test_without_a_stop_only_code_zero_is_success(command: bool) -> None:
    assert classify(command=command, code=0) == "SUCCESS"
    assert classify(command=command, code=3) == "EXIT_CODE"
    assert classify(command=command, code=143) == "EXIT_CODE"
    assert classify(command=command, signal=9) == "SIGNAL"


def test_a_trainer_of_ours_says_what_it_was() -> None:
    assert classify(REQUESTED, code=0, stop_reason="asked") == "SUCCESS"
    assert classify(REQUESTED, code=143, stop_reason="asked") is StopCause.REQUESTED
    assert classify(REQUESTED, code=78, stop_reason="asked") == "CONFIG_INVALID"
    assert classify(REQUESTED, signal=9, stop_reason="asked", kill_reason="grace over") is StopCause.REQUESTED


def test_a_command_that_was_asked_to_stop_has_stopped() -> None:
    endings: list[dict[str, Any]] = [{"code": 0}, {"code": 1}, {"signal": 15}]
    for ended in endings:
        assert classify(REQUESTED, command=True, stop_reason="asked", **ended) is StopCause.REQUESTED


def test_trust_that_ran_out_comes_before_everything() -> None:
    assert classify(REQUESTED, signal=9, trust_lost=True, kill_reason="trust") is StopCause.TRUST_LOST


def test_a_shim_that_stopped_its_trainer_for_want_of_an_agent_was_leaving() -> None:
    assert classify(code=143, stop_reason="no agent") is StopCause.LEAVING


def test_a_stall_is_a_failure_though_the_agent_killed_it() -> None:
    assert classify(signal=9, kill_reason="stalled", stalled="no step for 60 s") == "STALLED"


def test_a_lost_shim_is_infrastructure() -> None:
    assert classify(REQUESTED, lost=True) == "SHIM_LOST"


def test_orders_only_sharpen() -> None:
    later = StopDirective(StopCause.LEAVING, 3.0, "leaving").strengthen(REQUESTED)
    assert (later.cause, later.grace) == (StopCause.REQUESTED, 3.0)
    assert StopDirective(StopCause.LEAVING, 30.0, "leaving").strengthen(later).grace == 3.0


@pytest.mark.parametrize(
    ("ended", "stderr", "expected"),
    [
        ({"code": 1}, OOM, "CUDA_OOM"),
        ({"code": 1}, "OSError: [Errno 28] No space left on device: 'x'", "DISK_FULL"),
        ({"code": 78}, "options.learning_rte is not known\n", "CONFIG_INVALID"),
        ({"code": 1}, "step 5/9\nnot finite: the loss at step 5; lower options.learning_rate\n", "NAN_LOSS"),
        ({"code": 3}, "ValueError: boom\n", "EXIT_CODE"),
        ({"signal": 11}, "", "SIGNAL"),
        ({"signal": 9}, "", "SIGNAL"),
        ({"code": 127, "error": "no such program"}, "", "START_FAILED"),
        ({"lost": True}, "", "SHIM_LOST"),
    ],
)
def test_reasons(ended: dict[str, object], stderr: str, expected: str) -> None:
    assert classify_failure(Exit(lease="l", **ended), stderr).reason == expected  # type: ignore[arg-type]


def test_what_is_not_finite_is_not_tried_again() -> None:
    found = classify_failure(Exit(lease="l", code=1), "step 5/9\nnot finite: the loss at step 5; lower …\n")
    assert (found.permanent, found.infrastructure) == (True, False)
    assert found.text.startswith("not finite: the loss at step 5")


def test_a_kill_while_the_kernel_was_killing_for_memory_is_called_so() -> None:
    assert classify_failure(Exit(lease="l", signal=9), "", oom_kills=1).reason == "OOM_KILLED"


def test_a_failure_that_found_no_room_for_its_words_is_called_so() -> None:
    """F15: its stderr is a file on the very disk that is full."""
    assert classify_failure(Exit(lease="l", code=1), "", disk_full=True).reason == "DISK_FULL"


def test_a_start_that_the_host_had_no_room_for_is_not_the_runs_end() -> None:
    errors = [f"/x: {os.strerror(number)}" for number in (errno.ENOENT, errno.ENOSPC, errno.EAGAIN)]
    start = [classify_failure(Exit(lease="l", code=127, error=error), "") for error in errors]
    assert [(each.permanent, each.infrastructure) for each in start] == [(True, False), (False, True), (False, True)]


def test_the_sentence_is_the_line_that_tells() -> None:
    assert "Tried to allocate 2 GiB" in classify_failure(Exit(lease="l", code=1), OOM + "later noise\n").text
    assert classify_failure(Exit(lease="l", code=3), "a\nValueError: boom\n\n").text == "exit code 3: ValueError: boom"


def test_only_what_trying_again_cannot_help_is_permanent() -> None:
    assert classify_failure(Exit(lease="l", code=78), "").permanent
    assert not classify_failure(Exit(lease="l", code=1), OOM).permanent
    assert classify_failure(Exit(lease="l", lost=True), "").infrastructure


def test_a_stall_names_itself() -> None:
    assert classify_failure(Exit(lease="l", signal=9), "", stalled="no step for 60 s").reason == "STALLED"


def test_last_lines_are_bounded_and_without_progress_bars() -> None:
    assert last_lines("10%\r50%\r100%\nend\n") == "100%\nend"
    assert len(last_lines("x\n" * 1000).split("\n")) == LAST_LINES
    assert len(last_lines("x" * 10**6)) == LAST_BYTES

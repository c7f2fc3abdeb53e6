"""What an exit is called."""

import pytest

from agent.causes import LAST_BYTES, LAST_LINES, cause_of, last_lines
from agent.jobs import Exit

OOM = "Traceback\n  File x\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"


@pytest.mark.parametrize(
    ("ended", "stderr", "expected"),
    [
        ({"code": 1}, OOM, "CUDA_OOM"),
        ({"code": 1}, "OSError: [Errno 28] No space left on device: 'x'", "DISK_FULL"),
        ({"code": 78}, "options.learning_rte is not known\n", "CONFIG_INVALID"),
        ({"code": 3}, "ValueError: boom\n", "EXIT_CODE"),
        ({"signal": 11}, "", "SIGNAL"),
        ({"signal": 9}, "", "SIGNAL"),
        ({"code": 127, "error": "no such program"}, "", "START_FAILED"),
        ({"lost": True}, "", "SHIM_LOST"),
    ],
)
def test_reasons(ended: dict[str, object], stderr: str, expected: str) -> None:
    assert cause_of(Exit(lease="l", **ended), stderr).reason == expected  # type: ignore[arg-type]


def test_a_kill_while_the_kernel_was_killing_for_memory_is_called_so() -> None:
    assert cause_of(Exit(lease="l", signal=9), "", oom_kills=1).reason == "OOM_KILLED"


def test_the_sentence_is_the_line_that_tells() -> None:
    assert "Tried to allocate 2 GiB" in cause_of(Exit(lease="l", code=1), OOM + "later noise\n").text
    assert cause_of(Exit(lease="l", code=3), "a\nValueError: boom\n\n").text == "exit code 3: ValueError: boom"


def test_only_what_trying_again_cannot_help_is_permanent() -> None:
    assert cause_of(Exit(lease="l", code=78), "").permanent
    assert not cause_of(Exit(lease="l", code=1), OOM).permanent
    assert cause_of(Exit(lease="l", lost=True), "").infrastructure


def test_a_stall_names_itself() -> None:
    assert cause_of(Exit(lease="l", signal=9), "", stalled="no step for 60 s").reason == "STALLED"


def test_last_lines_are_bounded_and_without_progress_bars() -> None:
    assert last_lines("10%\r50%\r100%\nend\n") == "100%\nend"
    assert len(last_lines("x\n" * 1000).split("\n")) == LAST_LINES
    assert len(last_lines("x" * 10**6)) == LAST_BYTES

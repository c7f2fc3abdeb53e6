"""Times, sizes and tables for users."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from relayctl.output import format

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (24 << 30, "24.0 GiB"), (1 << 60, "1048576.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert format.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59.9, "59 s"), (180, "3 min"), (7500, "2 h 5 min"), (97 * 3600, "4 d 1 h")]
)
def test_spans(seconds: float, text: str) -> None:
    assert format.format_span(seconds) == text


def test_ago() -> None:
    assert format.format_ago(NOW - timedelta(minutes=3), NOW) == "3 min ago"
    assert format.format_ago(NOW + timedelta(seconds=2), NOW) == "just now"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.45123456, "0.4512"),
        (5e-5, "5.00e-05"),
        (128.0, "128"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (0, "0"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format.format_number(value) == text


def test_a_table_is_aligned_and_only_its_end_is_cut() -> None:
    rows = [["a", "running: all is well"], ["日本", "x"]]
    assert format.format_table(["NAME", "STATE"], rows) == "NAME  STATE\na     running: all is well\n日本  x"
    assert format.format_table(["NAME", "STATE"], rows, 12).splitlines()[1] == "a     runni…"


def test_a_block_leaves_out_what_is_empty_and_indents_further_lines() -> None:
    assert (
        format.format_block([("run", "sums"), ("none", ""), ("attempts", "1\n2")])
        == "run        sums\nattempts   1\n           2"
    )


@given(st.text(), st.integers(1, 40))
def test_what_others_wrote_fits_and_cannot_steer_the_terminal(text: str, width: int) -> None:
    shown = format.cut_to_width(format.make_printable(text), width)
    assert cell_len(shown) <= width
    assert shown.isprintable()

"""Samples as figures."""

from __future__ import annotations

import pytest

from benchmarks.report import Table, interval, p99, spread


def test_the_interval_of_a_median_comes_from_order_statistics() -> None:
    """Of ten values it is the second to the ninth, with 97.9 %: the binomial's own figure."""
    found = interval([float(value) for value in range(10, 0, -1)])
    assert (found.low, found.median, found.high) == (2, 5.5, 9)
    assert found.confidence == pytest.approx(1 - 22 / 1024)
    assert str(found) == "5.500 [2.000, 9.000]"


def test_an_outlier_moves_no_end_of_it() -> None:
    assert interval([1.0] * 9 + [1000.0]).high == 1


def test_few_values_give_the_whole_range_and_say_with_what_confidence() -> None:
    found = interval([3.0, 1.0, 2.0])
    assert (found.low, found.median, found.high, found.confidence) == (1, 2, 3, 0.75)
    assert interval([1.0]).confidence == 0


def test_percentiles_and_ranges() -> None:
    assert p99([float(value) for value in range(101)]) == 99
    assert spread([3.0, 1.0, 2.5]) == "2.50 s (1.00 to 3.00)"
    assert spread([3.0], "ms") == "3.00 ms"


def test_a_table_is_markdown_with_straight_columns() -> None:
    lines = str(Table("Title", ("", "p50"), [("a long name", "1 ms"), ("b", "12.5 ms")], ["A note."])).splitlines()
    assert lines == [
        "",
        "Title",
        "",
        "|             | p50     |",
        "| ----------- | ------- |",
        "| a long name | 1 ms    |",
        "| b           | 12.5 ms |",
        "",
        "A note.",
    ]

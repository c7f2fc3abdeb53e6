"""The benchmarks as a command."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.__main__ import NAMES, main


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("trainer", "throughput")]
)  # which load the libraries
def test_every_benchmark_says_what_it_measures_and_can_be_run(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ and callable(module.measure)


def test_a_name_that_there_is_none_of_is_a_mistake_with_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "strat"]) == 2
    assert "strat; there are: start, shim" in capsys.readouterr().err


def test_one_benchmark_for_real(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "shim"]) == 0
    assert "| spare" in capsys.readouterr().out

"""What a commit runs of marked tests, tried on a file of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = """
import pytest
def test_always(): pass
@pytest.mark.thorough
def test_thorough(): pass
@pytest.mark.rotating(2)
@pytest.mark.parametrize("case", range(9))
def test_cases(case): pass
@pytest.mark.rotating(1, of="group")
def test_one(): pass
@pytest.mark.rotating(1, of="group")
def test_other(): pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "test_file.py"
    path.write_text(FILE)
    return path


def collect(*arguments: str | Path) -> set[str]:
    """Return the names of the tests that pytest would run."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.tiers", "-c", os.devnull, "--collect-only", "-q"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}


def test_a_commit_runs_a_few_and_everything_runs_all(file: Path) -> None:
    everything = collect("--thorough", file)
    assert len(everything) == 13
    draws = [collect(f"--draw={draw}", file) for draw in "abcdef"]
    for drawn in draws:
        assert drawn < everything and "test_always" in drawn and "test_thorough" not in drawn
        assert len({name for name in drawn if name.startswith("test_cases")}) == 2
        assert len(drawn & {"test_one", "test_other"}) == 1
    assert len(set(map(frozenset, draws))) > 1
    assert collect("--draw=a", file) == draws[0]


def test_a_test_that_is_named_runs(file: Path) -> None:
    assert collect(f"{file}::test_thorough") == {"test_thorough"}

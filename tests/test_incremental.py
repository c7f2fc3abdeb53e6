"""`make test` runs what has changed since it passed, in a checkout of a few files that the test changes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import incremental

PASSES, FAILS = "def test_it() -> None: ...\n", "def test_it() -> None:\n    assert False\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Two groups of one test each, one test beside them, and what they test."""
    for name in ("agent/a.py", "coordinator/c.py"):
        write(tmp_path / name, "")
        write(tmp_path / "tests" / Path(name).parent / f"test_{Path(name).name}", PASSES)
    write(tmp_path / "tests/test_beside.py", PASSES)
    write(tmp_path / "pyproject.toml", '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib", "-q"]\n')
    shutil.copy(incremental.__file__, tmp_path / "tests/incremental.py")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_test(checkout: Path, *arguments: str) -> tuple[int, str, str]:
    """The exit code, how many passed, and which groups were passed over."""
    command = [sys.executable, "-m", "tests.incremental", "-n", "0", *arguments]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60)
    count = re.search(r"(\d+) passed", done.stdout)
    unchanged = re.search(r"unchanged since they passed here: (.*) \(", done.stdout)
    return done.returncode, count[1] if count else "", unchanged[1] if unchanged else ""


def test_what_has_not_changed_is_passed_over(checkout: Path) -> None:
    assert make_test(checkout) == (0, "3", "")
    assert make_test(checkout) == (0, "", "test_*.py, agent, coordinator")
    assert make_test(checkout, "--all") == (0, "3", "")
    write(checkout / "agent/a.py", "changed = True\n")
    assert make_test(checkout) == (0, "2", "coordinator")
    write(checkout / "tests/shared.py", "")
    assert make_test(checkout) == (0, "3", "")


def test_what_failed_is_run_again(checkout: Path) -> None:
    make_test(checkout)
    write(checkout / "tests/agent/test_a.py", FAILS)
    assert make_test(checkout)[0] == make_test(checkout)[0] == 1
    write(checkout / "tests/agent/test_a.py", PASSES)
    assert make_test(checkout) == (0, "", "test_*.py, agent, coordinator")  # as it was when it passed


def test_what_pytest_is_told_to_run_is_run_and_not_remembered(checkout: Path) -> None:
    assert make_test(checkout, "tests/agent")[:2] == (0, "1")
    assert make_test(checkout) == (0, "3", "")

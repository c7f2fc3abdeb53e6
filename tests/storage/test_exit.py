"""A process that has used a bucket ends as it says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", ["", "import obstore; "])
def test_what_was_said_is_out_and_the_code_is_right(first: str) -> None:
    code = f"{first}from storage.exit import end_process; print('said', end=''); end_process(7)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "proto", capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (7, b"said")

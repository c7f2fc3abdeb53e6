"""`relay-agent` itself: what is wrong with how it was started is one line and exit 78, at once."""

import subprocess
import sys
from pathlib import Path

import pytest


def run_agent(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--data-dir", str(tmp_path / "data"), "--runtime-dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "agent", "run", *folders, "--name", "a", "--coordinator", "127.0.0.1:1"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("folder", ["/proc/none", "file"])
def test_a_root_that_cannot_be_there_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    ended = run_agent(tmp_path, "--root", str(tmp_path / folder))
    assert ended.returncode == 78
    assert ended.stderr.startswith(f"relay-agent: --root {tmp_path / folder}: ") and ended.stderr.count("\n") == 1


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    ended = run_agent(tmp_path, "--root", str(tmp_path / "root"), "--python", "/bin/true")
    assert ended.returncode == 78
    assert ended.stderr == "relay-agent: --python /bin/true: this is not a Python interpreter that works\n"

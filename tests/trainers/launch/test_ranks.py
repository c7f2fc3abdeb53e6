"""The small parent process and what it starts, with a few lines in place of the trainer."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainers.launch.control import ControlFolder, Outcome

TIMEOUT = 60
PARENT = """
import json, os, sys
from dataclasses import asdict
from pathlib import Path
from trainers.launch.control import ControlFolder
from trainers.launch.ranks import Ranks

outcome = Ranks(ControlFolder(Path(sys.argv[1]))).run([sys.executable, "-c", sys.argv[2]], os.environ, 1)
print(json.dumps(asdict(outcome)))
"""
RANK = """
import signal
from trainers.launch.control import ControlFolder, Outcome

control = ControlFolder.from_environ()
{}
print("ready", flush=True)
signal.pause()
"""


@contextmanager
def start_launcher(root: Path, does: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the parent with a rank that does this, reports it and waits forever."""
    argv = [sys.executable, "-c", PARENT, str(root), RANK.format(does)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        yield parent


@pytest.mark.parametrize(
    ("does", "outcome"),
    [
        ("", Outcome(143, "stopped at once, on request: there was nothing new to save")),
        (
            "control.mark_training_started()",
            Outcome(143, "stopped at once, on request: steps that were not saved are lost"),
        ),
        ("control.mark_training_started(); control.record_outcome(Outcome(0))", Outcome(0)),
    ],
)
def test_asked_twice_it_kills_and_says_what_became_of_the_run(tmp_path: Path, does: str, outcome: Outcome) -> None:
    with start_launcher(tmp_path, does) as parent:
        for number in (signal.SIGTERM, signal.SIGINT):
            parent.send_signal(number)
        said, _ = parent.communicate(timeout=TIMEOUT)
    assert Outcome(**json.loads(said)) == outcome
    assert ControlFolder(tmp_path).stop_requested()


#: A signal at the worst moment: the launcher has just been reaped, and its number may be another process's.
LATE_SIGNAL = """
import os, signal
reap = os.waitpid

def waitpid(pid, options):
    reaped = reap(pid, options)
    os.kill(os.getpid(), signal.SIGINT)
    return reaped

os.waitpid = waitpid
"""


def test_a_stop_that_comes_when_all_has_ended_kills_nobody(tmp_path: Path) -> None:
    ends = (
        "control.request_stop(); control.mark_training_started(); control.record_outcome(Outcome(0)); raise SystemExit"
    )
    argv = [sys.executable, "-c", LATE_SIGNAL + PARENT, str(tmp_path), RANK.format(ends)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    assert Outcome(**json.loads(said)) == Outcome(0)


def test_a_killed_parent_takes_its_ranks_along(tmp_path: Path) -> None:
    with start_launcher(tmp_path, "control.mark_training_started()") as parent:
        parent.kill()
        parent.communicate(timeout=TIMEOUT)  # the rank holds the other end of the pipe: it closes when the rank ends

"""What stays of attempts that are over, on a real file system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.folder import AttemptFolder, RunFolder
from agent.retiring import Begun
from agent.wire import Assignment
from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2

FIRST, SECOND, THIRD = ("1" * 32, "2" * 32, "3" * 32)


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    return Begun(tmp_path / "data" / "attempts")


def begin(
    begun: Begun, root: Path, lease: str, number: int, *steps: int, head: runs_pb2.Checkpoint | None = None
) -> AttemptFolder:
    """An attempt whose trainer has sealed these steps."""
    run = {"version": "relay/v1", "name": "r", "method": "command", "command": ["true"]}
    spec = {**run, "checkpoint": {"keep": {"last": 2}}}
    message = pb.Assignment(
        run="runs/r", attempt=number, spec_json=json.dumps(spec), checkpoints=[head] if head else []
    )
    assignment = Assignment(f"runs/r/leases/{lease}", message)
    attempt = RunFolder(root, "r").attempt(number, lease)
    begun.add(lease, attempt)
    attempt.create()
    assignment.save(attempt.assignment)
    for step in steps:
        attempt.checkpoint(step).mkdir()
    return attempt


def test_the_last_of_the_run_stay_and_the_head_that_was_last_named(begun: Begun, tmp_path: Path) -> None:
    first = begin(begun, tmp_path, FIRST, 1, 10, 20, 30)
    begun.retire(tmp_path, FIRST)
    assert first.steps() == [10, 20, 30], "while it ran its publisher has seen to its own"
    assert not first.work.exists() and not first.staging.exists()
    head = runs_pb2.Checkpoint(lease=f"runs/r/leases/{FIRST}", attempt=1, step=10)
    second = begin(begun, tmp_path, SECOND, 2, 40, head=head)
    begun.retire(tmp_path, SECOND)
    assert (first.steps(), second.steps()) == ([10, 30], [40])
    assert begun.all() == {}


def test_nothing_goes_that_another_attempt_of_the_run_may_resume_from(begun: Begun, tmp_path: Path) -> None:
    first = begin(begun, tmp_path, FIRST, 1, 10, 20, 30)
    second = begin(begun, tmp_path, SECOND, 2, 40)
    third = begin(begun, tmp_path, THIRD, 3, 50)
    begun.retire(tmp_path, SECOND)
    assert (first.steps(), second.steps()) == ([10, 20, 30], [40])
    assert first.work.exists() and third.work.exists() and not second.work.exists()


def test_what_never_came_to_an_assignment_only_gives_its_folders_back(begun: Begun, tmp_path: Path) -> None:
    first = begin(begun, tmp_path, FIRST, 1, 10, 20, 30)
    begun.retire(tmp_path, FIRST)
    second = begin(begun, tmp_path, SECOND, 2, 40)
    second.assignment.unlink()
    begun.retire(tmp_path, SECOND)
    assert not second.work.exists() and first.steps() == [10, 20, 30] and begun.all() == {}
    begun.retire(tmp_path, THIRD)  # never begun

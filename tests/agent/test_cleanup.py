"""What stays of attempts that are over, on a real file system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.cleanup import OpenAttempts
from agent.folder import AttemptFolder, RunFolder
from agent.wire import Assignment
from relay.v1 import agents_pb2 as pb

FIRST, SECOND, THIRD = ("1" * 32, "2" * 32, "3" * 32)


@pytest.fixture
def open_attempts(tmp_path: Path) -> OpenAttempts:
    return OpenAttempts(tmp_path / "data" / "attempts")


def begin(open_attempts: OpenAttempts, root: Path, lease: str, number: int, *steps: int) -> AttemptFolder:
    """An attempt whose trainer has sealed these steps."""
    spec = {"version": "relay/v1", "name": "r", "method": "command", "command": ["true"]}
    message = pb.Assignment(run="runs/r", attempt=number, spec_json=json.dumps(spec))
    assignment = Assignment(f"runs/r/leases/{lease}", message)
    attempt = RunFolder(root, "r").attempt(number, lease)
    open_attempts.add(lease, attempt)
    attempt.create()
    assignment.save(attempt.assignment)
    for step in steps:
        attempt.checkpoint(step).mkdir()
    return attempt


def test_what_was_offered_to_the_registry_stays_and_the_rest_goes(open_attempts: OpenAttempts, tmp_path: Path) -> None:
    first = begin(open_attempts, tmp_path, FIRST, 1, 10, 20, 30)
    first.offer(10)
    first.offer(20)
    second = begin(open_attempts, tmp_path, SECOND, 2, 40)
    open_attempts.retire(FIRST)
    assert first.steps() == [10, 20]
    assert not first.work.exists() and not first.staging.exists()
    assert second.steps() == [40] and open_attempts.all().keys() == {SECOND}
    open_attempts.retire(SECOND)
    assert (first.steps(), second.steps()) == ([10, 20], []) and open_attempts.all() == {}


def test_what_never_came_to_an_assignment_only_gives_its_folders_back(
    open_attempts: OpenAttempts, tmp_path: Path
) -> None:
    second = begin(open_attempts, tmp_path, SECOND, 2)
    second.assignment.unlink()
    open_attempts.retire(SECOND)
    assert not second.work.exists() and open_attempts.all() == {}
    open_attempts.retire(THIRD)  # never begun

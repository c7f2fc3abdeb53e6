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
def begun(tmp_path: Path) -> OpenAttempts:
    return OpenAttempts(tmp_path / "data" / "attempts")


def begin(begun: OpenAttempts, root: Path, lease: str, number: int, *steps: int) -> AttemptFolder:
    """An attempt whose trainer has sealed these steps."""
    spec = {"version": "relay/v1", "name": "r", "method": "command", "command": ["true"]}
    message = pb.Assignment(run="runs/r", attempt=number, spec_json=json.dumps(spec))
    assignment = Assignment(f"runs/r/leases/{lease}", message)
    attempt = RunFolder(root, "r").attempt(number, lease)
    begun.add(lease, attempt)
    attempt.create()
    assignment.save(attempt.assignment)
    for step in steps:
        attempt.checkpoint(step).mkdir()
    return attempt


def test_what_was_offered_to_the_registry_stays_and_the_rest_goes(begun: OpenAttempts, tmp_path: Path) -> None:
    first = begin(begun, tmp_path, FIRST, 1, 10, 20, 30)
    first.offer(10)
    first.offer(20)
    second = begin(begun, tmp_path, SECOND, 2, 40)
    begun.retire(FIRST)
    assert first.steps() == [10, 20]
    assert not first.work.exists() and not first.staging.exists()
    assert second.steps() == [40] and begun.all().keys() == {SECOND}
    begun.retire(SECOND)
    assert (first.steps(), second.steps()) == ([10, 20], []) and begun.all() == {}


def test_what_never_came_to_an_assignment_only_gives_its_folders_back(begun: OpenAttempts, tmp_path: Path) -> None:
    second = begin(begun, tmp_path, SECOND, 2)
    second.assignment.unlink()
    begun.retire(SECOND)
    assert not second.work.exists() and begun.all() == {}
    begun.retire(THIRD)  # never begun

"""The run folder on a real file system (row A6, R7)."""

import json
from pathlib import Path

import pytest

from agent.folder import AttemptFolder, RunFolder, checked_name, clean_checkpoints, write_atomically

LEASE = "0123456789abcdef"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "sums-sft")


@pytest.fixture
def attempt(run: RunFolder) -> AttemptFolder:
    made = run.attempt(1, LEASE)
    made.create()
    for step in (100, 200, 300):
        made.checkpoint(step).mkdir()
    return made


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "UPPER", "x" * 129, "a\n", "-a"])
def test_r7_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a name"):
        checked_name(name)
    with pytest.raises(ValueError, match="not a name"):
        RunFolder(tmp_path, name)


def test_an_attempt_is_named_by_its_number_and_lease(run: RunFolder, attempt: AttemptFolder) -> None:
    assert attempt.path == run.path / "attempts" / "1-01234567"
    run.attempt(10, LEASE).create()
    run.attempt(9, LEASE).create()
    assert [each.path.name.split("-")[0] for each in run.attempts()] == ["1", "9", "10"]


def test_people_find_links_and_the_state(run: RunFolder, attempt: AttemptFolder) -> None:
    run.show(attempt)
    assert (run.path / "ckpt" / "latest").resolve() == attempt.checkpoint(300)
    assert (run.path / "ckpt" / "step_00000100").resolve() == attempt.checkpoint(100)
    assert (run.path / "events.jsonl").is_symlink()
    state = json.loads((run.path / "state.json").read_text())
    assert state == {"status": "running", "attempt": "1-01234567", "latest_ckpt": "ckpt/step_00000300"}
    run.show(attempt, "succeeded")
    assert json.loads((run.path / "state.json").read_text())["status"] == "succeeded"


def test_what_the_registry_never_heard_of_goes_unless_it_is_needed(run: RunFolder, attempt: AttemptFolder) -> None:
    run.show(attempt)
    attempt.offer(100)
    run.retain(attempt, needed={300})
    assert attempt.steps() == [100, 300]
    assert sorted(path.name for path in (run.path / "ckpt").iterdir()) == ["latest", "step_00000100", "step_00000300"]
    run.retain(attempt, needed=set())
    assert attempt.steps() == [100]


def test_nothing_goes_of_an_attempt_that_kept_no_note_of_what_it_offered(attempt: AttemptFolder) -> None:
    attempt.offered.unlink()
    attempt.discard_unregistered(set())
    assert attempt.steps() == [100, 200, 300]


def test_what_is_let_go_loses_its_name_and_its_link(run: RunFolder, attempt: AttemptFolder) -> None:
    run.show(attempt)
    for _ in range(2):  # an agent that died before it could say so
        run.discard(attempt, 200)
    assert attempt.steps() == [100, 300] and not list(attempt.checkpoints.glob(".tmp*"))
    assert not (run.path / "ckpt" / "step_00000200").is_symlink()


def test_what_a_dead_agent_was_removing_is_cleaned(tmp_path: Path, attempt: AttemptFolder) -> None:
    (attempt.checkpoints / ".tmp-relay-1-step_00000400").mkdir()
    clean_checkpoints(tmp_path)
    assert not list(attempt.checkpoints.glob(".tmp*")) and attempt.steps() == [100, 200, 300]


def test_the_next_attempt_takes_the_links_over(run: RunFolder, attempt: AttemptFolder) -> None:
    run.show(attempt)
    second = run.attempt(2, "fedcba9876543210")
    second.create()
    second.checkpoint(200).mkdir()
    run.show(second)
    assert (run.path / "ckpt" / "latest").resolve() == second.checkpoint(200)
    assert (run.path / "ckpt" / "step_00000200").resolve() == second.checkpoint(200)


def test_what_only_the_trainer_needed_goes(attempt: AttemptFolder) -> None:
    attempt.resume.mkdir()
    attempt.events.touch()
    (attempt.staging / ".tmp-step_00000500").mkdir()
    (attempt.checkpoints / ".tmp-relay-1-step_00000400").mkdir()
    attempt.retire()
    assert sorted(path.name for path in attempt.path.iterdir()) == ["ckpt", "events.jsonl", "offered", "output"]
    assert attempt.steps() == [100, 200, 300] and not list(attempt.checkpoints.glob(".tmp*"))


def test_what_a_dead_agent_was_writing_for_people_is_cleaned(run: RunFolder, attempt: AttemptFolder) -> None:
    (run.path / ".tmp-relay-1-state.json").touch()
    run.clean()
    assert not list(run.path.glob(".tmp*")) and attempt.steps() == [100, 200, 300]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, None)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

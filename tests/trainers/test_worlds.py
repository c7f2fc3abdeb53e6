"""S6. A run that another number of processes resumes, or that has another micro-batch, trains the rows that it would
have trained, at the same rates; or it is refused before it trains.
"""

import json
from pathlib import Path

import pytest

from tests.trainers import attempts
from tests.trainers.worlds import (
    CHANGES,
    CLOSE,
    EXPECTED,
    WORLDS,
    change_world,
    compare_from,
    make_run,
    read_rates,
    read_steps,
    record_rows,
)


@pytest.mark.slow
@pytest.mark.rotating(1)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_step_trains_the_same_rows_however_it_is_split(world: str, change: str, work: Path, tmp_path: Path) -> None:
    assert change_world(world, change, work, tmp_path) == EXPECTED.get(world, {}).get(change, CLOSE)


def _resumes(attempt: attempts.Attempt) -> list[tuple[str, list[str]]]:
    return [(each["fidelity"], each["reasons"]) for each in attempt.events if each["type"] == "resume"]


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_goes_to_fewer_processes_and_back(work: Path, tmp_path: Path) -> None:
    """S6: the split that the run began with decides, also at the second change, and in the epoch after it."""
    run, _ = make_run(work, tmp_path, "sft", {}, {}, 14, (2, 1, 2))
    straight = attempts.make(tmp_path / "straight", run, before=record_rows, ranks=2)
    fewer = attempts.make(tmp_path / "fewer", run, before=record_rows, resume=straight.checkpoint(2))
    back = attempts.make(tmp_path / "back", run, before=record_rows, ranks=2, resume=fewer.checkpoint(5))
    assert compare_from(2, straight, fewer) == compare_from(5, straight, back) == CLOSE
    again = attempts.make(tmp_path / "again", run, before=record_rows, resume=fewer.checkpoint(5))
    assert again.weights() == fewer.weights()
    anew = "what is drawn at random (dropout) is drawn anew"
    one, two = "micro-batch 2 x accumulation 2 x 1 process", "micro-batch 2 x accumulation 1 x 2 processes"
    assert _resumes(fewer) == [("close", [f"{two} became {one}: a step still trains 4 rows", anew])]
    assert _resumes(back) == [("close", [f"{one} became {two}: a step still trains 4 rows", anew])]
    assert _resumes(again) == [("exact", [])]


@pytest.mark.slow
@pytest.mark.thorough
def test_a_checkpoint_of_an_older_release_goes_on_in_another_world(work: Path, tmp_path: Path) -> None:
    """What it does not record is taken from its options, and what cannot be compared is said."""
    run, _ = make_run(work, tmp_path, "sft", {}, {}, 16, (2, 1, 2))
    straight = attempts.make(tmp_path / "straight", run, before=record_rows, ranks=2)
    older = straight.checkpoint(3)
    manifest = older / "relay_state.json"
    told = json.loads(manifest.read_text())
    del told["batches"], told["conditions"], told["identity"]["contents of model"]
    manifest.write_text(json.dumps(told))
    resumed = attempts.make(tmp_path / "resumed", run, before=record_rows, resume=older)
    assert compare_from(3, straight, resumed) == CLOSE
    [(fidelity, reasons)] = _resumes(resumed)
    assert fidelity == "close"
    assert "the contents of model were not recorded with the checkpoint" in reasons
    assert "libraries, GPU, precision and attention were not recorded with the checkpoint" in reasons


def test_another_micro_batch_of_the_same_step_goes_on(work: Path, tmp_path: Path) -> None:
    before, _ = make_run(work, tmp_path, "sft", {}, {}, 14, (4, 1, 1))
    after, _ = make_run(work, tmp_path, "sft", {}, {}, 14, (1, 4, 1))
    straight = attempts.make(tmp_path / "straight", before, before=record_rows)
    resumed = attempts.make(tmp_path / "resumed", after, before=record_rows, resume=straight.checkpoint(3))
    assert len(read_steps(straight.folder)) == len(read_rates(straight)) == 8
    assert compare_from(3, straight, resumed) == CLOSE


@pytest.mark.slow
@pytest.mark.thorough
def test_what_another_world_draws_at_random_it_draws_again(work: Path, tmp_path: Path) -> None:
    run, _ = make_run(work, tmp_path, "sft", {}, {}, 16, (2, 1, 2))
    del run["model_init"]  # with dropout
    straight = attempts.make(tmp_path / "straight", run, ranks=2)
    first, second = (attempts.make(tmp_path / name, run, resume=straight.checkpoint(3)) for name in ("first", "second"))
    assert first.weights() == second.weights() != straight.weights()


@pytest.mark.slow
@pytest.mark.thorough
def test_what_ranks_have_not_yet_logged_is_shared_among_the_new_ones(work: Path, tmp_path: Path) -> None:
    """S7. Losses are logged every four steps, and the run is cut after three: each rank has a sum of its own."""
    run, _ = make_run(work, tmp_path, "sft", {}, {}, 16, (2, 1, 2))
    run["options"]["logging_steps"] = 4
    straight = attempts.make(tmp_path / "straight", run, ranks=2)
    resumed = attempts.make(tmp_path / "resumed", run, resume=straight.checkpoint(3))
    names = ("train_loss", "grad_norm", "learning_rate", "num_tokens")
    curves = [{key: value for key, value in each.curve.items() if key[1] in names} for each in (straight, resumed)]
    assert len(curves[0]) >= 6 and curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_refusal_names_the_numbers_of_processes_that_fit(work: Path, tmp_path: Path) -> None:
    run, _ = make_run(work, tmp_path, "sft", {}, {}, 12, (3, 1, 1))
    straight = attempts.make(tmp_path / "straight", run)
    refused = attempts.make(tmp_path / "refused", run, ranks=2, resume=straight.checkpoint(2))
    assert refused.code not in (0, 78), "another host may have another number"
    assert refused.messages("error") == [
        "step_00000002: 2 processes cannot go on with steps of 3 rows, begun as micro-batch 3 x accumulation 1 x 1 "
        "process; resume with 1 or 3 processes (resources.gpus_per_node)"
    ]

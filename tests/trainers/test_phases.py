"""A trainer says what it is busy with beside steps, and its host takes none of it for a stall."""

from pathlib import Path
from typing import Any

import pytest

from agent.attempt.progress import LEAST, PHASE_LIMITS, TrainerProgress
from agent.events.reports import PhaseReport, StepReport, parse_reports
from tests.trainers import attempts
from tests.trainers.specs import METHODS, REWARDED, TAUGHT, spec

GENERATING = (*REWARDED, *TAUGHT)


def phases(made: attempts.Attempt) -> list[str]:
    return [event["phase"] for event in made.events if event["type"] == "phase"]


def report_every_batch() -> None:
    """Evaluations of a tiny model take less than the second between two reports."""
    from trainers import reporting

    reporting._PHASE_SECONDS = 0.0


def test_phases_come_in_order_and_evaluations_advance(work: Path, tmp_path: Path) -> None:
    run = spec(work, "sft")
    run["options"] |= {"max_steps": 4, "per_device_eval_batch_size": 8}
    made = attempts.make(tmp_path / "whole", run, before=report_every_batch)
    found = phases(made)
    assert found[:2] == ["loading", "first_step"]
    assert found[-2:] == ["saving", "training"]  # the result
    evaluating = [event for event in made.events if event.get("phase") == "evaluating"]
    assert [(event["done"], event["total"]) for event in evaluating] == [(done, 6) for done in range(1, 7)]
    resumed = attempts.make(tmp_path / "resumed", run, resume=made.checkpoint(3), before=report_every_batch)
    assert phases(resumed)[:2] == ["loading", "skipping"] and resumed.weights() == made.weights()


def test_an_evaluation_far_longer_than_a_step_may_take_is_no_stall(work: Path, tmp_path: Path) -> None:
    """What the real trainer wrote, read by the host's own rule as if ten minutes lay between two lines."""
    run = spec(work, "sft")
    run["options"] |= {"max_steps": 4, "per_device_eval_batch_size": 4}
    made = attempts.make(tmp_path / "whole", run, before=report_every_batch)
    progress, now, stalls = TrainerProgress("auto", 0.0), 0.0, []
    reports = list(parse_reports((made.folder / "events.jsonl").read_bytes(), 0))
    assert sum(isinstance(report, PhaseReport) for report in reports) > 12
    for report in reports:
        pause = PHASE_LIMITS[progress.phase] if progress.phase else LEAST
        now += pause - 1
        stalls += [said] if (said := progress.describe_stall(now)) else []
        match report:
            case StepReport(step):
                progress.record_step(step, now)
            case PhaseReport(phase, done):
                progress.record_phase(phase, done, now)
    assert stalls == []
    assert progress.describe_stall(now + (progress.limit or 0.0))


@pytest.mark.rotating(1)
@pytest.mark.parametrize("method", GENERATING)
def test_rollouts_are_a_phase(work: Path, tmp_path: Path, method: str) -> None:
    """Each is counted, within evaluations too, so that one that hangs is told from one that goes on."""
    assert method in METHODS
    made = attempts.make(tmp_path / "run", spec(work, method))
    assert made.code == 0, (made.folder / "stderr.log").read_text()
    rollouts: list[dict[str, Any]] = [event for event in made.events if event.get("phase") == "generating"]
    counts = [event["done"] for event in rollouts]
    assert len(counts) > 2 and counts == sorted(set(counts))
    assert made.events[-1]["phase"] == "training"

"""What event lines tell their host."""

from pathlib import Path

from agent.events.reports import PhaseReport, ReportReader, SavedCheckpoint, StepReport, encode_event


def test_each_report_is_read_once_and_nonsense_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = ReportReader(path)
    assert reader.read() == []
    first = encode_event("metric", step=1, values={}) + b"not json\n[1]\n" + encode_event("message", text="x")
    saved = encode_event("checkpoint", step=2, path="step_2", metrics={"eval_loss": 0.5})
    path.write_bytes(first + saved + b'{"type": "metric", "st')
    assert reader.read() == [
        StepReport(1),
        SavedCheckpoint(2, "step_2", {"eval_loss": 0.5}, "events", len(first + saved)),
    ]
    with path.open("ab") as file:
        file.write(
            b'ep": 3}\n'
            + encode_event("metric", step=-1)
            + encode_event("metric", step=True)
            + encode_event("metric", step=2**70)
        )
    assert reader.read() == [StepReport(3)]


def test_of_steps_in_a_row_only_the_last_is_kept(tmp_path: Path) -> None:
    """An agent that comes after another reads all of them again, and must not hold days of training in memory."""
    path = tmp_path / "events.jsonl"
    steps = [encode_event("metric", step=step, values={}) for step in range(1, 1001)]
    path.write_bytes(b"".join(steps) + encode_event("checkpoint", step=1000, path="s") + steps[0])
    reports = ReportReader(path).read()
    assert isinstance(reports[1], SavedCheckpoint) and [reports[0], reports[2]] == [StepReport(1000), StepReport(1)]


def test_of_phases_before_a_step_none_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    round_ = [
        encode_event("phase", phase="generating", done=1),
        encode_event("phase", phase="training", done=0),
        encode_event("progress", step=1),
        encode_event("phase", phase="evaluating", done=1),
        encode_event("phase", phase="evaluating", done=2, total=9),
        encode_event("phase", phase=7),
        encode_event("phase", phase="evaluating", done="x"),
        encode_event("phase"),
    ]
    path.write_bytes(b"".join(round_[:3] * 1000 + round_[3:]))
    assert ReportReader(path).read() == [StepReport(1), PhaseReport("evaluating", 2)]

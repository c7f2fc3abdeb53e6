"""Events are whole lines of strict JSON."""

import json
import math
from pathlib import Path

import pytest

from trainers.events import EventLog, encode_number


def test_lines(tmp_path: Path) -> None:
    with EventLog(tmp_path / "run" / "events.jsonl") as events:
        events.log_metrics(3, {"train_loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.1})
        events.log_progress(3, 10, 0.5)
        events.log_checkpoint(3, "step_00000003", {"eval_loss": 1.5, "train_loss": math.nan})
        events.log_message("warning", "größer\nals")
        events.log_pin("model", "abc")
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    metric, progress, checkpoint, message, pin = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert metric["values"] == {"train_loss": "NaN", "grad_norm": "Infinity", "learning_rate": 0.1}
    assert (progress["step"], progress["total"]) == (3, 10)
    assert checkpoint["metrics"] == {"eval_loss": 1.5}
    assert message["text"] == "größer\nals"
    assert (pin["name"], pin["value"]) == ("model", "abc")


def test_a_second_writer_appends(tmp_path: Path) -> None:
    for _ in range(2):
        with EventLog(tmp_path / "events.jsonl") as events:
            events.log_pin("model", "abc")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_numbers_json_cannot_say() -> None:
    assert [encode_number(value) for value in (1.5, 2, math.nan, math.inf, -math.inf)] == [
        1.5,
        2,
        "NaN",
        "Infinity",
        "-Infinity",
    ]

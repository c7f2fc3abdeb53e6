"""What may change between two attempts at a run, and what makes it another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runfile import parse_run_file
from tests.trainers.deferred import deferred_imports
from trainers.errors import ConfigError

with deferred_imports():
    from trainers import fingerprint
    from trainers.data import loading
    from trainers.models import hub

RUN: dict[str, Any] = {
    "version": "relay/v1",
    "method": "sft",
    "model": {"name_or_path": "org/tiny"},
    "data": {"train": "rows.jsonl"},
    "lora": {"r": 4},
    "options": {"learning_rate": 1e-3, "max_steps": 20},
}
ROWS = [{"text": "one"}, {"text": "two"}]
SOURCE = ("org/tiny", "abc", "org/tiny")


def _of(
    rows: list[dict[str, Any]] = ROWS, source: tuple[str, str | None, str] = SOURCE, **changes: Any
) -> fingerprint.Fingerprint:
    digest = loading.Rows("text", rows).digest
    return fingerprint.fingerprint_of(parse_run_file(RUN | changes), hub.ModelSource(*source), digest)


def _refusal(now: fingerprint.Fingerprint) -> str:
    with pytest.raises(ConfigError) as refused:
        fingerprint.require_same_run(Path("/host/step_00000010"), _of(), now)
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"learning_rate": 1e-4}}, "options.learning_rate was 0.001 and is 0.0001"),
        ({"options": {}}, "options.learning_rate was 0.001 and is not given"),
        ({"lora": {"r": 8}}, "lora.r was 4 and is 8"),
        ({"lora": None}, "full training was false and is true"),
        ({"seed": 7}, "seed was 42 and is 7"),
        ({"data": {"train": "rows.jsonl", "streaming": True}}, "data.streaming was not given and is true"),
        ({"rows": ROWS[::-1]}, "rows have changed"),
        ({"source": ("org/tiny", "def", "org/tiny")}, 'model was "org/tiny@abc" and is "org/tiny@def"'),
    ],
)
def test_what_was_trained_otherwise_is_another_run(changes: dict[str, Any], said: str) -> None:
    assert f"step_00000010 was saved by a run that trained something else: {said}" in _refusal(_of(**changes))


def test_all_differences_are_said_at_once() -> None:
    said = _refusal(_of(seed=7, lora={"r": 8}))
    assert "seed" in said and "lora.r" in said


def test_how_far_and_how_often_may_change_and_a_folder_may_move() -> None:
    longer = RUN["options"] | {"max_steps": 40, "logging_steps": 1, "eval_steps": 5, "dataloader_num_workers": 2}
    fingerprint.require_same_run(Path("step_00000010"), _of(), _of(options=longer))
    moved = [_of(source=(f"{home}/model", None, "./model")) for home in ("/host-a", "/host-b")]
    fingerprint.require_same_run(Path("step_00000010"), *moved)

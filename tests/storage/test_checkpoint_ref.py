"""Which checkpoint is meant."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from storage.checkpoint_ref import CheckpointNotFound, CheckpointRef, NoBestMetric, choose_checkpoint


@dataclass(frozen=True)
class Saved:
    step: int
    attempt: int = 1
    superseded: bool = False
    head: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


BY_LOSS: dict[str, Any] = {"checkpoint": {"keep": {"metric": "eval_loss", "mode": "min"}}}


@pytest.mark.parametrize(
    ("text", "run", "which"),
    [("x", "x", ""), ("runs/x", "x", ""), ("runs/x-1.a@120", "x-1.a", "120"), ("x@best", "x", "best")],
)
def test_a_point_is_a_run_and_what_of_it(text: str, run: str, which: str) -> None:
    assert CheckpointRef.parse(text) == CheckpointRef(run, which)


@pytest.mark.parametrize("text", ["", "@best", "x@", "x@newest", "x@-1", "runs/", "runs/x/checkpoints/1", "X Y@1"])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="RUN@STEP"):
        CheckpointRef.parse(text)


def test_of_several_of_a_step_the_one_on_the_curve() -> None:
    found = [Saved(10, 1), Saved(10, 2), Saved(10, 3, superseded=True), Saved(20, 2, head=True)]
    assert choose_checkpoint("10", found, {}) == found[1]
    assert choose_checkpoint("latest", found, {}) == found[3]
    with pytest.raises(CheckpointNotFound, match="step 15; it has 10, 20"):
        choose_checkpoint("15", found, {})
    with pytest.raises(CheckpointNotFound, match="it has none"):
        choose_checkpoint("latest", [], {})


def test_the_best_is_by_the_run_files_metric_and_of_equal_ones_the_newer() -> None:
    values = {10: 0.5, 20: 0.25, 30: 0.25, 40: float("nan"), 50: 0.1}
    found = [Saved(step, metrics={"eval_loss": loss}, superseded=step == 50) for step, loss in values.items()]
    assert choose_checkpoint("best", [*found, Saved(60)], BY_LOSS).step == 30
    upwards = {"checkpoint": {"keep": {"metric": "eval_loss", "mode": "max"}}}
    assert choose_checkpoint("best", found, upwards).step == 10
    with pytest.raises(NoBestMetric, match=r"checkpoint\.keep\.metric"):
        choose_checkpoint("best", found, {})
    with pytest.raises(CheckpointNotFound, match="value of eval_loss"):
        choose_checkpoint("best", [Saved(60)], BY_LOSS)

"""A checkpoint is labelled with what was measured of its own weights, and with nothing else; it is saved before it is
evaluated, and an evaluation that is cut is run again."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import attempts
from tests.trainers.specs import METHODS, spec


def _saved(attempt: attempts.Attempt) -> dict[int, dict[str, Any]]:
    """Return the events of checkpoints, by step."""
    return {event["step"]: event for event in attempt.events if event["type"] == "checkpoint"}


def _warnings(attempt: attempts.Attempt) -> list[str]:
    return [text for text in attempt.messages("warning") if "keep.metric" in text]


def _steps(run: dict[str, Any], **keep: Any) -> dict[str, Any]:
    """Return a run that saves each of five steps, evaluates every second and logs every third."""
    options = run["options"] | {"max_steps": 5, "eval_steps": 2, "logging_steps": 3}
    return run | {"checkpoint": {"every": "1 steps", "keep": keep}, "options": options}


def test_only_values_of_its_own_step_label_a_checkpoint(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "attempt", _steps(run))
    saved = _saved(attempt)
    assert {step: list(event["metrics"]) for step, event in saved.items()} == {
        **{step: [] for step in (1, 2, 4, 5)},
        3: ["train_loss"],
    }
    evaluated = {step for step, name in attempt.curve if name == "eval_loss"}
    assert {step for step, event in saved.items() if event.get("evaluation_due")} == evaluated >= {2, 4}
    order = [(event["type"], event["step"]) for event in attempt.events if "eval_loss" in event.get("values", ())]
    assert all(
        attempt.events.index(saved[step]) < index
        for index, event in enumerate(attempt.events)
        for kind, step in order
        if (event["type"], event.get("step")) == (kind, step) and "eval_loss" in event["values"]
    )


def kill_while_evaluating(step: int) -> None:
    """Kill the attempt once the first batch of the evaluation of a step is done."""
    from trainers.methods import sft

    predict = sft.ResumableSFT.prediction_step

    def predict_and_die(self: Any, *args: Any, **kwargs: Any) -> Any:
        predicted = predict(self, *args, **kwargs)
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return predicted

    sft.ResumableSFT.prediction_step = predict_and_die  # type: ignore[method-assign]


#: Where the evaluation is: options, and the step at which it is cut.
CUTS: dict[str, tuple[dict[str, Any], int]] = {
    "within an epoch": ({"eval_steps": 5}, 5),
    "at an epoch's end": ({"eval_strategy": "epoch", "eval_steps": None}, 11),
    "at an epoch's end, by steps": ({"eval_steps": 11}, 11),
    "at the last step": ({"eval_steps": 13}, 13),
}


@pytest.mark.rotating(2)
@pytest.mark.parametrize("case", CUTS)
def test_an_evaluation_that_is_cut_is_run_again(case: str, run: dict[str, Any], tmp_path: Path) -> None:
    options, cut = CUTS[case]
    run["options"] = {**run["options"], "max_steps": 13, "logging_steps": 1, **options}
    run["options"] = {name: value for name, value in run["options"].items() if value is not None}
    run["checkpoint"] = {"every": f"{cut} steps"}
    straight = attempts.make(tmp_path / "straight", run)
    assert straight.code == 0 and (cut, "eval_loss") in straight.curve
    first = attempts.make(tmp_path / "first", run, before=lambda: kill_while_evaluating(cut))
    assert first.code != 0 and (cut, "eval_loss") not in first.curve
    assert _saved(first)[cut]["evaluation_due"] is True
    second = attempts.make(tmp_path / "second", run, resume=first.checkpoint(cut))
    assert second.code == 0, (second.folder / "stderr.log").read_text()
    assert first.curve | second.curve == straight.curve
    assert second.weights() == straight.weights()


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_evaluation_that_is_cut_is_run_again_by_every_method(method: str, work: Path, tmp_path: Path) -> None:
    run = spec(work, method, checkpoint={"every": "4 steps"})
    straight = attempts.make(tmp_path / "straight", run)
    evaluated = {key for key in straight.curve if key[0] == 4 and key[1].startswith("eval_")}
    assert straight.code == 0 and evaluated
    resumed = attempts.make(tmp_path / "resumed", run, resume=straight.checkpoint(4))
    assert resumed.code == 0, (resumed.folder / "stderr.log").read_text()
    assert {key: resumed.curve.get(key) for key in evaluated} == {key: straight.curve[key] for key in evaluated}
    assert resumed.weights() == straight.weights()


def test_what_the_best_are_kept_by_may_be_any_logged_metric(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "attempt", _steps(run, best=1, metric="grad_norm"))
    assert list(_saved(attempt)[3]["metrics"]) == ["train_loss", "grad_norm"]
    assert _warnings(attempt) == [
        "checkpoint.keep.metric: the training has not reported grad_norm, so no checkpoint is kept as the best; it "
        "reported nothing"
    ]


def test_an_evaluation_that_lacks_the_metric_to_keep_by_says_so(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "attempt", _steps(run, best=1, metric="eval_accuracy"))
    (said,) = _warnings(attempt)
    assert said.startswith("checkpoint.keep.metric: the evaluation has not reported eval_accuracy, so no checkpoint is")
    assert "; it reported eval_loss, " in said
    right = attempts.make(tmp_path / "right", _steps(run, best=1, metric="eval_loss"))
    assert _warnings(right) == []

"""NaN ends a training without a retry, and what is not finite is never saved."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainers import attempts
from tests.trainers.specs import METHODS, spec
from trainers.launch.control import FAILED, SUCCEEDED


def poison(what: str, step: int, *, once: bool) -> None:
    """From a step on (or at that step only), make the loss or the weights NaN."""
    from trainers.methods import sft

    compute: Any = sft.ResumableSFT.compute_loss
    train: Any = sft.ResumableSFT.training_step

    def is_due(trainer: Any) -> bool:
        now = trainer.state.global_step + 1
        return bool(trainer.model.training and (now == step if once else now >= step))

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = compute(self, *args, **kwargs)
        return found + float("nan") if is_due(self) and not isinstance(found, tuple) else found

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = train(self, *args, **kwargs)
        if is_due(self):
            next(self.model.parameters()).data[0] = float("nan")
        return loss

    def report_nan(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = train(self, *args, **kwargs)
        return loss * float("nan") if is_due(self) else loss

    if what == "weights":
        sft.ResumableSFT.training_step = training_step  # type: ignore[method-assign]
    elif what == "loss alone":
        sft.ResumableSFT.training_step = report_nan  # type: ignore[method-assign]
    else:
        sft.ResumableSFT.compute_loss = compute_loss  # type: ignore[method-assign]


def _run(run: dict[str, Any], **lifecycle: str) -> dict[str, Any]:
    """Return a run of nine steps that saves every second and logs every fourth."""
    options = run["options"] | {"max_steps": 9, "logging_steps": 4}
    return run | {"checkpoint": {"every": "2 steps"}, "options": options, "lifecycle": lifecycle}


def _require_finite_checkpoints(attempt: attempts.Attempt) -> None:
    import torch
    from safetensors.torch import load_file

    for step in attempt.steps_saved:
        weights = load_file(attempt.checkpoint(step) / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values()), step


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_what_is_not_finite_stops_the_training_before_it_is_saved(
    what: str, run: dict[str, Any], tmp_path: Path
) -> None:
    attempt = attempts.make(tmp_path / "attempt", _run(run), before=lambda: poison(what, 5, once=False))
    assert attempt.outcome is not None and attempt.outcome.code == FAILED
    assert attempt.outcome.message.startswith("not finite: ") and " at step " in attempt.outcome.message
    assert attempt.messages("error") == [attempt.outcome.message]
    assert attempt.steps_saved == [2, 4]
    _require_finite_checkpoints(attempt)
    assert not (attempt.folder / "output").exists()


def test_with_continue_it_trains_on_and_saves_only_what_is_finite(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(
        tmp_path / "attempt", _run(run, on_nan="continue"), before=lambda: poison("weights", 5, once=False)
    )
    assert attempt.outcome is not None and attempt.outcome.code == FAILED
    assert attempt.outcome.message == "not finite: weights at step 9, the last one, so there is no result"
    assert attempt.steps_saved == [2, 4]
    assert "not finite: weights at step 6; no checkpoint is saved while they are not" in attempt.messages("warning")
    assert not (attempt.folder / "output").exists()


def test_a_loss_that_harmed_no_weights_is_passed_over_with_continue(run: dict[str, Any], tmp_path: Path) -> None:
    def reported_once() -> None:
        poison("loss alone", 5, once=True)

    attempt = attempts.make(tmp_path / "attempt", _run(run, on_nan="continue"), before=reported_once)
    assert attempt.outcome is not None and attempt.outcome.code == SUCCEEDED
    assert attempt.curve[8, "train_loss"] == "NaN"
    assert attempt.steps_saved == [2, 4, 6, 8, 9]
    _require_finite_checkpoints(attempt)
    stopped = attempts.make(tmp_path / "stopped", _run(run), before=reported_once)
    assert stopped.outcome is not None and stopped.outcome.message.startswith("not finite: the loss at step 5; ")


@pytest.mark.slow
@pytest.mark.rotating(3, of="training")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_stops(method: str, work: Path, tmp_path: Path) -> None:
    """Rates that throw the weights away at once. What generates fails while it samples."""
    options = {"learning_rate": 1e30, "max_grad_norm": 0.0, "logging_steps": 100}
    run = spec(work, method, options=options, checkpoint={"every": "1 steps"})
    attempt = attempts.make(tmp_path / "attempt", run)
    assert attempt.outcome is not None and attempt.outcome.code == FAILED
    assert attempt.outcome.message.startswith("not finite: "), attempt.outcome
    assert "Traceback" not in (attempt.folder / "stderr.log").read_text()
    _require_finite_checkpoints(attempt)
    assert not (attempt.folder / "output").exists()

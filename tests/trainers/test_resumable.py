"""An interrupted run is the same run: weights by SHA-256, and every logged value except times and speeds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import attempts
from trainers.launch.control import ControlFolder

LORA = {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LORA},
    "packing": {"options": {"packing": True, "max_length": 64}},
    "epochs": {"options": {"logging_strategy": "epoch", "eval_strategy": "epoch"}},
    "accumulating": {"options": {"gradient_accumulation_steps": 3, "eval_on_start": True}},
}
#: How often each variant saves, and the steps it resumes from.
CUTS: dict[str, tuple[int, tuple[int, ...]]] = {"full": (1, (7, 11, 20)), "epochs": (1, (7, 11))}


def _varied(run: dict[str, Any], variant: str) -> dict[str, Any]:
    changed = VARIANTS[variant]
    return run | changed | {"options": run["options"] | changed.get("options", {})}


@pytest.mark.rotating(1)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_cut_gives_the_straight_run(run: dict[str, Any], tmp_path: Path, variant: str) -> None:
    """S6. Interrupted beside logging steps, at an epoch's end (11) and at the very end (20)."""
    run = _varied(run, variant)
    pace, cuts = CUTS.get(variant, (5, (5, 10)))
    straight = attempts.make(tmp_path / "straight", run | {"checkpoint": {"every": f"{pace} steps"}})
    assert straight.steps_saved == list(range(pace, 21, pace))
    for cut in cuts:
        resumed = attempts.make(tmp_path / f"cut-{cut}", run, resume=straight.checkpoint(cut))
        before = {key: value for key, value in _until(straight, cut).items() if key not in resumed.curve}
        assert (resumed.code, resumed.weights()) == (0, straight.weights()), cut
        assert before | resumed.curve == straight.curve, cut


def test_stopped_after_every_single_step(run: dict[str, Any], tmp_path: Path) -> None:
    """Thirteen attempts of one step each, across an epoch's end, give the curve and weights of a run that was never
    stopped.
    """
    run["options"]["max_steps"] = 13
    straight = attempts.make(tmp_path / "straight", run)
    resume = None
    curve: dict[tuple[int, str], Any] = {}
    for step in range(1, 14):
        part = attempts.make(tmp_path / str(step), run, resume=resume, stop=True)
        assert part.code == (143 if step < 13 else 0)
        assert part.steps_saved == [step]
        resume = part.checkpoint(step)
        curve |= part.curve
    assert part.weights() == straight.weights()
    assert curve == straight.curve


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_two_ranks_train_one_model_and_resume_it(run: dict[str, Any], tmp_path: Path) -> None:
    """Gloo DDP on a CPU host, launched as users do: one run and not two, and bit-exact across an interruption."""
    run = run | {"name": "tiny", "checkpoint": {"every": "5 steps"}, "options": run["options"] | {"max_steps": 8}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    argv = [sys.executable, "-m", "trainers", "run.json"]
    environ = os.environ | {"RELAY_GPUS": "2", "OMP_NUM_THREADS": str(attempts.THREADS)}
    subprocess.run(argv, cwd=tmp_path, env=environ, check=True, timeout=120)
    home = tmp_path / "runs" / "tiny"
    cut = home / "ckpt" / "step_00000005"
    assert {path.name for path in cut.glob("rank_*")} == {"rank_00000.json", "rank_00001.json"}

    resumed = attempts.make(tmp_path / "resumed", run, resume=cut, ranks=2)
    assert resumed.code == 0, (resumed.folder / "stderr.log").read_text()
    straight = attempts.Attempt(0, home, None, attempts.events(home / "attempts" / "1" / "events.jsonl"))
    assert resumed.weights() == straight.weights()
    for name in ("train_loss", "num_tokens", "grad_norm"):
        assert resumed.curve[6, name] == straight.curve[6, name]


def stop_while_evaluating() -> None:
    """Request a stop once the first batch of an evaluation is done."""
    from trainers.methods import sft

    predict = sft.ResumableSFT.prediction_step

    def predict_and_ask(*args: Any, **kwargs: Any) -> Any:
        ControlFolder.from_environ().request_stop()
        return predict(*args, **kwargs)

    sft.ResumableSFT.prediction_step = predict_and_ask  # type: ignore[method-assign]


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_puts_off_the_evaluation_due_at_its_step(run: dict[str, Any], tmp_path: Path, begun: bool) -> None:
    """A due or running evaluation would use up the time that is left to stop. The next attempt runs it before its first
    step, with the same values and weights.
    """
    run["options"] |= {"max_steps": 3, "eval_steps": 1, "logging_steps": 1}
    straight = attempts.make(tmp_path / "straight", run)
    if begun:
        first = attempts.make(tmp_path / "first", run, before=stop_while_evaluating)
    else:
        first = attempts.make(tmp_path / "first", run, stop=True)
    assert (first.code, first.steps_saved) == (143, [1])
    assert (1, "eval_loss") in straight.curve and (1, "eval_loss") not in first.curve
    second = attempts.make(tmp_path / "second", run, resume=first.checkpoint(1))
    assert first.curve | second.curve == straight.curve
    assert second.weights() == straight.weights()


def test_the_recorded_number_of_threads_is_used_again(run: dict[str, Any], tmp_path: Path) -> None:
    first = attempts.make(tmp_path / "first", run, stop=True)
    state = first.checkpoint(1) / "relay_state.json"
    assert '"threads": 1' in state.read_text()
    state.write_text(state.read_text().replace('"threads": 1', '"threads": 2'))
    second = attempts.make(tmp_path / "second", run, resume=first.checkpoint(1), stop=True)
    assert '"threads": 2' in (second.checkpoint(2) / "relay_state.json").read_text()


def test_a_nan_is_shown_once_and_said(run: dict[str, Any], tmp_path: Path) -> None:
    """F23. A diverging loss is logged as the text "NaN", and a message reports it."""
    run["options"] |= {"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 9}
    attempt = attempts.make(tmp_path / "diverging", run | {"lifecycle": {"on_nan": "continue"}})
    losses = [value for (_, name), value in sorted(attempt.curve.items()) if name == "train_loss"]
    assert "NaN" in losses
    assert [text for text in attempt.messages("warning") if "NaN" in text] != []


def _until(attempt: attempts.Attempt, cut: int) -> dict[tuple[int, str], Any]:
    """Return the curve up to the checkpoint of that step."""
    at = next(
        index for index, event in enumerate(attempt.events) if (event["type"], event.get("step")) == ("checkpoint", cut)
    )
    return attempts.Attempt(0, attempt.folder, None, attempt.events[:at]).curve

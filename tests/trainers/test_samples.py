"""Samples of what the model says during training, which change nothing else."""

from pathlib import Path
from typing import Any

import pytest

from runfile import parse_run_file
from runfile.mistakes import RunFileErrors
from tests.trainers import attempts
from tests.trainers.deferred import deferred_imports
from tests.trainers.specs import LORA, REWARDED, spec

with deferred_imports():
    from trainers import rollout, samples

ASKED = {"samples": {"prompts": 3, "every": 2, "max_new_tokens": 5}}
SAYS = [{"role": "user", "content": "what?"}]
ANSWERS = [{"role": "assistant", "content": "that"}]


def samples_of(attempt: attempts.Attempt, kind: str) -> dict[int, list[dict[str, Any]]]:
    """Return the samples of a kind by their step."""
    found: dict[int, list[dict[str, Any]]] = {}
    for event in attempt.events:
        if event["type"] == "sample" and event["kind"] == kind:
            found.setdefault(event["step"], []).append(event)
    return found


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
@pytest.mark.parametrize("method", ["sft", "cpt", "dpo", "kto", "grpo", "ppo", "gkd"])
def test_prompts_are_completed_at_every_evaluation_and_the_training_is_the_same(
    work: Path, tmp_path: Path, method: str
) -> None:
    lora = {"lora": LORA} if method in ("dpo", "grpo") else {}
    plain = attempts.make(tmp_path / "plain", spec(work, method, **lora))
    looked = attempts.make(tmp_path / "looked", spec(work, method, **lora, **ASKED))
    assert (plain.code, looked.code) == (0, 0)
    assert looked.weights() == plain.weights() and looked.curve == plain.curve
    prompts = samples_of(looked, "prompt")
    assert [len(prompts[step]) for step in sorted(prompts)] == [3] * len(prompts) and 4 in prompts
    asked = [[each["prompt"] for each in prompts[step]] for step in sorted(prompts)]
    assert all(each == asked[0] for each in asked) and all(asked[0])
    rollouts = samples_of(looked, "rollout")
    assert sorted(rollouts) == ([2, 4, 6] if method in REWARDED else [])
    for each in [each for step in rollouts for each in rollouts[step]]:
        assert sorted(each["rewards"]) == ["digits", "short"]
        assert each["rewards"]["short"] == pytest.approx(-len(each["completion"]) / 10, abs=1e-5)
    assert samples_of(plain, "prompt") == {}


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_without_held_out_rows_every_so_many_steps(work: Path, tmp_path: Path) -> None:
    run = spec(work, "sft", **ASKED)
    del run["data"]["eval"], run["options"]["eval_steps"]
    assert sorted(samples_of(attempts.make(tmp_path / "made", run), "prompt")) == [2, 4, 6]


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_run_that_is_cut_shows_and_trains_what_the_straight_one_does(work: Path, tmp_path: Path) -> None:
    run = spec(work, "grpo", **ASKED)
    straight = attempts.make(tmp_path / "straight", run)
    assert straight.steps_saved == [3, 6]
    rest = attempts.make(tmp_path / "rest", run, resume=straight.checkpoint(3))
    assert rest.weights() == straight.weights()

    def what(attempt: attempts.Attempt, kind: str) -> dict[int, list[str]]:
        return {
            step: [each["completion"] for each in found]
            for step, found in samples_of(attempt, kind).items()
            if step > 3
        }

    assert what(rest, "prompt") == what(straight, "prompt") and what(rest, "rollout") == what(straight, "rollout")


@pytest.mark.parametrize(
    ("kind", "row", "prompt"),
    [
        ("prompt", {"prompt": "a", "answer": "b"}, "a"),
        ("prompt_completion", {"prompt": SAYS, "completion": ANSWERS}, SAYS),
        ("chat", {"messages": [*SAYS, *ANSWERS, *SAYS, *ANSWERS]}, [*SAYS, *ANSWERS, *SAYS]),
        ("chat", {"messages": SAYS}, SAYS),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, "a"),
        ("preference", {"chosen": "2 is 2", "rejected": "2 is 3"}, "2 is "),
        ("preference", {"chosen": [*SAYS, *ANSWERS], "rejected": [*SAYS, *SAYS]}, SAYS),
        ("text", {"text": "all of it"}, "all of it"),
    ],
)
def test_a_prompt_is_what_comes_before_what_is_learnt(kind: str, row: dict[str, Any], prompt: Any) -> None:
    assert samples.extract_prompt(kind, row) == prompt


def test_of_many_rollouts_some_are_shown_of_different_prompts() -> None:
    made = [rollout.Rollout(str(n // 4), str(n)) for n in range(16)]
    assert [each.prompt for each in samples.pick_evenly(made, 4)] == ["0", "1", "2", "3"]
    assert samples.pick_evenly(made[:3], 4) == made[:3]


def test_messages_are_shown_with_their_roles_and_a_lone_answer_without() -> None:
    assert samples.format_turns([*SAYS, *ANSWERS]) == "user: what?\nassistant: that"
    assert samples.format_turns(ANSWERS) == "that"


def test_a_reward_model_says_nothing(work: Path) -> None:
    with pytest.raises(RunFileErrors, match="samples: does not go with method: reward"):
        parse_run_file(spec(work, "reward", **ASKED))

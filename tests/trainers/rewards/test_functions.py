"""Rewards: what a run file may name, and what becomes of one that fails."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from runfile import DataSource, parse_run_file
from runfile.mistakes import RunFileErrors
from tests.trainers import attempts
from tests.trainers.deferred import deferred_imports
from tests.trainers.specs import needs_tasks
from trainers.data import reasoning_gym
from trainers.errors import ConfigError, HostError, RewardError

with deferred_imports():
    from trainers.rewards import functions

MINE = """
import os, random, time

def length(completions):
    return [len(each) for each in completions]

def none(completions, **_):
    return [None for _ in completions]

def raises(completions, **_):
    if "bad" in completions:
        raise KeyError("no such word")
    return [1.0] * len(completions)

def text(completions, **_):
    return ["much" if each == "bad" else 1.0 for each in completions]

def few(completions, **_):
    return [1.0]

def hangs(completions, **_):
    while "bad" in completions:
        pass
    return [1.0] * len(completions)

def dies(completions, **_):
    if "bad" in completions:
        os._exit(3)
    return [1.0] * len(completions)

def draws(completions, **_):
    print("on its own output")
    return [random.random() for _ in completions]

async def later(completions, answer, **_):
    return [float(said == right) for said, right in zip(completions, answer)]

number = 7
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def open_rewards(
    *asked: dict[str, Any], columns: tuple[str, ...] = ("prompt", "answer"), files: Path | None = None
) -> Any:
    run = {
        "version": "relay/v1",
        "method": "grpo",
        "model": {"name_or_path": "x/y"},
        "data": {"train": "rows.jsonl"},
        "rewards": list(asked),
        "files": [str(files)] if files else [],
    }
    return functions.resolve_rewards(parse_run_file(run), columns, {})


class State:
    """The trainer's state as TRL passes it."""

    global_step = 4


def compute_rewards(judge: Any, *completions: str, **columns: Any) -> Any:
    prompts = [f"spell {each}" for each in completions]
    ids = [[0] for _ in completions]
    return judge(prompts=prompts, completions=list(completions), completion_ids=ids, trainer_state=State(), **columns)


@pytest.mark.parametrize("apart", [{}, {"isolated": True}, {"timeout": "20s"}])
def test_a_function_of_a_file_scores(mine: Path, apart: dict[str, Any]) -> None:
    """It is given the arguments that it names, in this process or in one of its own."""
    length, none, later = open_rewards(
        *({"call": f"{mine}:{name}", **apart} for name in ("length", "none", "later")), files=mine
    )
    assert [each.__name__ for each in (length, none, later)] == ["length", "none", "later"]
    assert compute_rewards(length, "a", "bcd", answer=["a", "x"]) == [1.0, 3.0]
    assert compute_rewards(none, "a", "b") == [None, None]
    assert compute_rewards(later, "a", "b", answer=["a", "x"]) == [1.0, 0.0]


def test_a_function_of_a_module_scores() -> None:
    (either,) = open_rewards({"call": "statistics:mean"})
    assert either.__name__ == "mean"
    (dotted,) = open_rewards({"call": "os.path.basename"})
    assert dotted.__name__ == "basename"


@pytest.mark.parametrize(
    ("name", "apart", "said"),
    [
        ("raises", {}, "KeyError: 'no such word'"),
        ("raises", {"isolated": True}, "KeyError: 'no such word'"),
        ("text", {}, 'gave "much", which is not a number'),
        ("text", {"isolated": True}, 'gave "much", which is not a number'),
        ("hangs", {"timeout": "4s"}, "took longer than 4 s"),
        ("dies", {"isolated": True}, r"its process ended \(exit code 3\)"),
    ],
)
def test_a_failure_names_its_sample(mine: Path, name: str, apart: dict[str, Any], said: str) -> None:
    (judge,) = open_rewards({"call": f"{mine}:{name}", **apart}, files=mine)
    sample = 'sample 2: prompt "spell bad", completion "bad": '
    with pytest.raises(RewardError, match=f"^reward {name}: {sample}{said}$"):
        compute_rewards(judge, "good", "bad", "fine")
    assert compute_rewards(judge, "good", "fine") == [1.0, 1.0]


def test_a_number_for_each_sample_is_wanted(mine: Path) -> None:
    (few,) = open_rewards({"call": f"{mine}:few"}, files=mine)
    with pytest.raises(RewardError, match="a number for each of 2 samples, found 1 values"):
        compute_rewards(few, "a", "b")


def test_what_a_function_apart_draws_is_drawn_again(mine: Path) -> None:
    """By the run's seed and the step, so that a resumed run has the rewards of an uninterrupted one."""
    (first,) = open_rewards({"call": f"{mine}:draws", "isolated": True}, files=mine)
    (second,) = open_rewards({"call": f"{mine}:draws", "isolated": True}, files=mine)
    assert compute_rewards(first, "a", "b") == compute_rewards(first, "a", "b") == compute_rewards(second, "a", "b")


def test_the_rewards_that_have_names() -> None:
    (tagged,) = open_rewards({"name": "exact_match", "config": {"tag": "answer"}})
    exact, repetition = open_rewards(
        {"name": "exact_match"}, {"name": "repetition_penalty", "config": {"ngram_size": 2}}
    )
    said = ["drow", "<answer> drow </answer>", "nothing"]
    assert compute_rewards(tagged, *said, answer=["drow"] * 3) == [0.0, 1.0, 0.0]
    assert compute_rewards(exact, *said, answer=["drow"] * 3) == [1.0, 0.0, 0.0]
    assert repetition(prompts=[""], completions=["x"], completion_ids=[[5, 5, 5, 5]]) == [pytest.approx(-2 / 3)]


@needs_tasks
def test_a_generated_task_verifies_its_answer() -> None:
    (row, *_) = reasoning_gym.generate_rows(DataSource(reasoning_gym="spell_backward", size=3), seed=1)
    assert row["completion"] == row["answer"] and row["answer"] in row["prompt"][::-1]
    (verified,) = open_rewards({"name": "reasoning_gym"}, columns=("prompt", "task"))
    right, wrong = compute_rewards(verified, row["answer"], "nothing", task=[row["task"]] * 2)
    assert right == 1.0 > wrong


def test_a_host_without_generated_tasks_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    reasoning_gym._create_dataset.cache_clear()
    with pytest.raises(HostError, match=r"needs the package reasoning-gym \(pip install 'relay-training\[tasks\]'\)"):
        next(reasoning_gym.generate_rows(DataSource(reasoning_gym="spell_backward", size=3), seed=1))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "reasoning_gim"}, "no reward called reasoning_gim; did you mean reasoning_gym"),
        ({"name": "reasoning_gym"}, "reasoning_gym reads the column task, which the rows do not have"),
        ({"name": "exact_match", "config": {"tags": 1}}, "exact_match does not take this config"),
        ({"name": "think_format", "config": {"a": 1}}, "think_format does not take this config: it has no settings"),
        ({"call": "nowhere.py:f"}, "nowhere.py cannot be read: No such file or directory; name it in files"),
        ({"call": "nowhere.at_all:f"}, "there is no module nowhere"),
        ({"call": "MINE:nothing"}, "has no function nothing"),
        ({"call": "MINE:number"}, "has no function number"),
    ],
)
def test_what_cannot_be_is_said_before_training(mine: Path, asked: dict[str, Any], said: str) -> None:
    call = {"call": asked["call"].replace("MINE", str(mine))} if "call" in asked else {}
    with pytest.raises(ConfigError, match=said):
        open_rewards({**asked, **call}, files=Path("nowhere.py") if "nowhere.py" in str(asked) else mine)


def test_two_of_one_name_would_be_one_curve(mine: Path) -> None:
    with pytest.raises(ConfigError, match="two are named length"):
        open_rewards({"call": f"{mine}:length"}, {"call": f"{mine}:length", "weight": 2}, files=mine)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "a", "call": "b.py:c"}, "give name, call or model, one of the three"),
        ({"name": "a", "timeout": "1s"}, "timeout and isolated go with call"),
        ({"call": "m:f", "config": {"a": 1}}, "config goes with name"),
        ({"call": "b.py:c"}, r"b.py is not uploaded with the run.*add files: \[b.py\]"),
    ],
)
def test_a_run_file_says_what_is_wrong_with_a_reward(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RunFileErrors, match=said):
        open_rewards(asked)


def spec(work: Path, *asked: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return three steps of GRPO."""
    return {
        "version": "relay/v1",
        "method": "grpo",
        "model": {"name_or_path": str(work / "model")},
        "data": {"train": [{"path": str(work / "prompt.jsonl")}]},
        "rewards": list(asked),
        "files": [str(work / "rewards.py")],
        "options": {
            "max_steps": 3,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
            **options,
        },
        "checkpoint": {"every": "3 steps"},
    }


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_reward_that_fails_ends_the_attempt(work: Path, tmp_path: Path, mine: Path) -> None:
    """As a failure of the run, with the sample and without a traceback."""
    mine.write_text("def picky(completions, **_):\n    return [1 / 0 for _ in completions]\n")
    run = spec(work, {"call": f"{mine}:picky"}) | {"files": [str(mine)]}
    attempt = attempts.make(tmp_path / "run", run)
    assert attempt.code == 1 and attempt.outcome is not None
    assert (
        "reward picky: sample 1: prompt" in attempt.outcome.message and "ZeroDivisionError" in attempt.outcome.message
    )
    assert "Traceback" not in (attempt.folder / "stderr.log").read_text()


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_reward_model_scores(work: Path, tmp_path: Path) -> None:
    """A model as `reward` leaves it; its curve has its name, and it is used beside functions."""
    trained = {
        "version": "relay/v1",
        "method": "reward",
        "model": {"name_or_path": str(work / "model")},
        "data": {"train": [{"path": str(work / "preference.jsonl")}]},
        "options": {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_checkpointing": False},
    }
    scorer = attempts.make(tmp_path / "scorer", trained)
    assert scorer.code == 0
    run = spec(work, {"model": str(scorer.folder / "output")}, {"call": f"{work / 'rewards.py'}:short"})
    attempt = attempts.make(tmp_path / "run", run)
    assert attempt.code == 0, (attempt.folder / "stderr.log").read_text()
    assert {(3, "rewards/output/mean"), (3, "rewards/short/mean"), (3, "reward")} <= attempt.curve.keys()


@needs_tasks
@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_generated_tasks_are_trained_on_and_held_out_ones_are_not(work: Path, tmp_path: Path) -> None:
    source = {"reasoning_gym": "spell_backward", "seed": 11, "config": {"min_word_len": 3, "max_word_len": 3}}
    run = spec(work, {"name": "reasoning_gym"}, eval_steps=3, per_device_eval_batch_size=8)
    held = {**source, "size": 4, "seed": 7, "disjoint_from": "train"}
    run["data"] = {"train": [{**source, "size": 40}], "eval": [held]}
    attempt = attempts.make(tmp_path / "run", run)
    assert attempt.code == 0, (attempt.folder / "stderr.log").read_text()
    assert {(3, "eval_reward"), (3, "rewards/reasoning_gym/mean")} <= attempt.curve.keys()


@needs_tasks
def test_training_passes_over_what_is_held_out() -> None:
    from trainers.data import loading as reading

    source = {"reasoning_gym": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 3}, "chat": True}
    asked = {"train": [{**source, "size": 300}], "eval": [{**source, "size": 20, "seed": 7, "disjoint_from": "train"}]}
    run = parse_run_file({"version": "relay/v1", "method": "sft", "model": {"name_or_path": "x/y"}, "data": asked})
    assert run.data is not None
    train, held = reading.load_rows(run.data, seed=1, kinds=("prompt_completion",), base=Path.cwd())
    assert held is not None and len(held) == 20 and 200 < len(train) < 300
    assert not {json.dumps(row["prompt"]) for row in train.rows} & {json.dumps(row["prompt"]) for row in held.rows}
    assert set(train.rows[0]) == {"prompt", "completion"} and train.rows[0]["prompt"][0]["role"] == "user"


@needs_tasks
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"reasoning_gym": "spell_backwards"}, "no tasks called spell_backwards; did you mean spell_backward?"),
        ({"reasoning_gym": "spell_backward", "config": {"a": 1}}, "spell_backward does not take this config"),
    ],
)
def test_tasks_that_cannot_be_generated(source: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(reasoning_gym.generate_rows(DataSource(**source), seed=1))

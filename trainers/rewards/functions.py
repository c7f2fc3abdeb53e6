"""The run file's `rewards`, as the functions that RL trainers call.

A reward is called with a batch, `f(prompts=[…], completions=[…], completion_ids=[…], **columns)`, and returns a number
for each sample, or None for no opinion. Prompts and completions are text, or lists of messages where the prompts are.
An exception, or a value that is not a number, ends the attempt with an error that names the sample.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runfile import Reward, RunFile
from runfile.mistakes import find_nearest
from trainers.data import reasoning_gym as generated_tasks
from trainers.data.row_formats import format_value
from trainers.errors import ConfigError, RewardError
from trainers.models.hub import ModelSource, fetch_model, resolve_reward_model
from trainers.models.loading import SCORING_TASK, load_model
from trainers.rewards.process import FunctionRaised, IsolatedFunction
from trainers.rewards.user_functions import call_function, import_function

RewardCallable = Callable[..., Any]
_TRAINER_ARGUMENTS = (
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
)  #: arguments of TRL's that are no columns


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model: a sequence classifier that gives one number."""

    name: str
    source: ModelSource


def resolve_rewards(
    run: RunFile, columns: Collection[str], pins: Mapping[str, str]
) -> list["RewardFunction | RewardModel"]:
    """Return the run's rewards in their order. Raises ConfigError for a reward that does not exist, or that reads a
    column which the rows (whose `columns` these are) do not have.
    """
    if not run.rewards:
        raise ConfigError("rewards: is missing; for instance rewards: [{call: rewards.py:score}]")
    found = [
        _resolve_reward(each, run.seed, columns, pins, f"rewards[{index}]") for index, each in enumerate(run.rewards)
    ]
    names = [each.name for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"rewards: two are named {', '.join(sorted(twice))}, and their curves would be one")
    return found


def reward_weights(run: RunFile) -> list[float]:
    """Return the weight of each reward."""
    return [float(reward.weight) for reward in run.rewards]


def _resolve_reward(
    reward: Reward, seed: int, columns: Collection[str], pins: Mapping[str, str], place: str
) -> "RewardFunction | RewardModel":
    """Resolve one reward, without loading a reward model."""
    if reward.model is not None:
        return RewardModel(reward.model.rstrip("/").rpartition("/")[2], resolve_reward_model(reward.model, pins))
    if reward.call is None:
        return RewardFunction(str(reward.name), _call_in_process(_make_registered(reward, columns, place)))
    function = import_function(reward.call)  # its errors must appear before a GPU is used
    name = reward.call.replace(".", ":").rpartition(":")[2]
    apart = reward.timeout is not None or reward.isolated
    return RewardFunction(
        name, IsolatedFunction(reward.call, reward.timeout, seed) if apart else _call_in_process(function)
    )


def _call_in_process(function: RewardCallable) -> Callable[[int, Mapping[str, Any]], Any]:
    """Return a caller of the function in this process."""
    return lambda _, given: call_function(function, given)


@dataclass(frozen=True, slots=True)
class RegisteredReward:
    """A reward that a run file refers to by name."""

    make: Callable[..., RewardCallable]  #: makes the function from the reward's `config`
    needs: str = ""  #: the column that it reads


def _make_registered(reward: Reward, columns: Collection[str], place: str) -> RewardCallable:
    """Make a registered reward from its config."""
    name = str(reward.name)
    if name not in REGISTERED:
        close = find_nearest(name, REGISTERED)
        hint = (
            f"did you mean {close}?"
            if close
            else f"the names are {', '.join(REGISTERED)}; or call: rewards.py:function"
        )
        raise ConfigError(f"{place}: there is no reward called {name}; {hint}")
    known = REGISTERED[name]
    if known.needs and known.needs not in columns:
        raise ConfigError(f"{place}: {name} reads the column {known.needs}, which the rows do not have")
    try:
        return known.make(**reward.config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: {name} does not take this config: {error}") from error


class RewardFunction:
    """One reward, called as TRL calls it, whose results are checked."""

    def __init__(self, name: str, ask: Callable[[int, Mapping[str, Any]], Any]) -> None:
        self.name = self.__name__ = name  # TRL names the curve by `__name__`
        self._call_function = ask

    def __call__(self, **given: Any) -> list[float | None]:
        state = given.get("trainer_state")
        step = int(getattr(state, "global_step", 0))
        batch = {name: value for name, value in given.items() if name not in _TRAINER_ARGUMENTS}
        count = len(batch["completions"])
        try:
            values = self._call_function(step, batch)
        except Exception as error:  # the user's code may raise anything
            raise self._find_failing_sample(step, batch, count, error) from error
        return self._check_values(values, batch, count)

    def _check_values(self, values: Any, batch: Mapping[str, Any], count: int) -> list[float | None]:
        """Return one number or None for each sample. Raises RewardError for anything else."""
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
            found = f"{len(values)} values" if isinstance(values, Sequence) else format_value(values)
            raise RewardError(
                f"reward {self.name}: must return a list with a number for each of {count} samples, found {found}"
            )
        for index, value in enumerate(values):
            if value is not None and not _is_number(value):
                raise RewardError(
                    f"{self._name_sample(batch, index)}: gave {format_value(value)}, which is not a number"
                )
        return [None if value is None else float(value) for value in values]

    def _find_failing_sample(self, step: int, batch: Mapping[str, Any], count: int, error: Exception) -> RewardError:
        """Return an error that names the sample which fails, found by calling the function with each sample alone."""
        for index in range(count):
            alone = {name: [value[index]] for name, value in batch.items()}
            try:
                self._call_function(step, alone)
            except Exception as cause:
                return RewardError(f"{self._name_sample(batch, index)}: {_describe_error(cause)}")
        return RewardError(
            f"reward {self.name}: {_describe_error(error)} (for {count} samples at once, and for none of them alone)"
        )

    def _name_sample(self, batch: Mapping[str, Any], index: int) -> str:
        """Return the reward's name and the sample's number and texts."""
        prompt, completion = format_value(batch["prompts"][index], 200), format_value(batch["completions"][index], 200)
        return f"reward {self.name}: sample {index + 1}: prompt {prompt}, completion {completion}"


def _is_number(value: Any) -> bool:
    """Return True for a finite number."""
    return hasattr(value, "__float__") and not isinstance(value, str) and math.isfinite(float(value))


def _describe_error(error: Exception) -> str:
    """Return the type and message of an error of the user's function."""
    return str(error) if isinstance(error, FunctionRaised | TimeoutError) else f"{type(error).__name__}: {error}"


def load_rewards(rewards: Sequence["RewardFunction | RewardModel"], model_init: Mapping[str, Any]) -> dict[str, Any]:
    """Return what TRL's trainers take: the functions and loaded models, and the tokenizers of the models."""
    from transformers import AutoTokenizer

    functions: list[Any] = []
    tokenizers: list[Any] = []
    for each in rewards:
        if isinstance(each, RewardFunction):
            functions.append(each)
            tokenizers.append(None)
            continue
        folder = fetch_model(each.source).folder
        scorer = load_model(folder, SCORING_TASK, **{"dtype": "float32", "device_map": None, **model_init})
        scorer.config._name_or_path = each.name  # the name of its curve
        functions.append(scorer)
        tokenizers.append(AutoTokenizer.from_pretrained(folder))
    return {"reward_funcs": functions, "reward_processing_classes": tokenizers}


def completion_text(completion: Any) -> str:
    """Return the text of a completion that is text or messages."""
    return completion if isinstance(completion, str) else "".join(str(each["content"]) for each in completion)


def _extract_answer(completion: Any, tag: str | None) -> str:
    """Return the answer in a completion: all of it, or the text in its last `<tag>…</tag>`."""
    text = completion_text(completion)
    if tag is None:
        return text.strip()
    _, opened, after = text.rpartition(f"<{tag}>")
    return after.partition(f"</{tag}>")[0].strip() if opened else ""


def _make_reasoning_gym(*, tag: str | None = None) -> RewardCallable:
    def reasoning_gym(completions: list[Any], task: list[str], **_: Any) -> list[float]:
        return [
            generated_tasks.score_answer(_extract_answer(each, tag), of)
            for each, of in zip(completions, task, strict=True)
        ]

    return reasoning_gym


def _make_exact_match(*, tag: str | None = None) -> RewardCallable:
    def exact_match(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
        return [
            float(_extract_answer(each, tag) == str(of).strip()) for each, of in zip(completions, answer, strict=True)
        ]

    return exact_match


def _from_trl(name: str, *, made: bool = False) -> Callable[..., RewardCallable]:
    """Return a maker of one of TRL's reward functions, or (`made`) of one that a function of TRL's makes from the
    config.
    """

    def make(**config: Any) -> RewardCallable:
        import trl.rewards

        function: RewardCallable = getattr(trl.rewards, name)
        if made:
            return function(**config)  # type: ignore[no-any-return]
        if config:
            raise TypeError(f"it has no settings, found {json.dumps(config)}")
        return function

    return make


#: The registered rewards, by name. TRL's are described in its documentation, "Reward Functions".
REGISTERED: Mapping[str, RegisteredReward] = {
    "reasoning_gym": RegisteredReward(_make_reasoning_gym, "task"),
    "exact_match": RegisteredReward(_make_exact_match, "answer"),
    "accuracy": RegisteredReward(_from_trl("accuracy_reward"), "solution"),
    "reasoning_accuracy": RegisteredReward(_from_trl("reasoning_accuracy_reward"), "solution"),
    "cosine_accuracy": RegisteredReward(_from_trl("get_cosine_scaled_reward", made=True), "solution"),
    "think_format": RegisteredReward(_from_trl("think_format_reward")),
    "repetition_penalty": RegisteredReward(_from_trl("get_repetition_penalty_reward", made=True)),
    "overlong_punishment": RegisteredReward(_from_trl("get_soft_overlong_punishment", made=True)),
}

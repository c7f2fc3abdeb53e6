"""What a completion is worth: the run file's `rewards`, as the functions that RL trainers call.

A reward is asked for a batch, `f(prompts=[…], completions=[…], completion_ids=[…], **columns)`, and gives a number for
each sample, or None where it has no opinion. Prompts and completions are text, or lists of messages where the prompts
are. What one raises, or returns that is no number, ends the attempt with an error that names the sample.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runfile import Reward, RunFile
from runfile.mistakes import nearest
from trainers.data import reasoning_gym as generated_tasks
from trainers.data.row_formats import shown
from trainers.errors import ConfigError, RewardError
from trainers.models.hub import ModelSource, local, reward_source
from trainers.models.loading import SCORE, load
from trainers.rewards.process import Isolated, Raised
from trainers.rewards.user_functions import call_with, function_of

Function = Callable[..., Any]
_TRAINERS_OWN = ("trainer_state", "log_extra", "log_metric", "environments")  #: what TRL gives beside the columns


@dataclass(frozen=True, slots=True)
class Scorer:
    """A reward model: a sequence classifier with one number."""

    name: str
    source: ModelSource


def of(run: RunFile, columns: Collection[str], pins: Mapping[str, str]) -> list["Judge | Scorer"]:
    """The run's rewards in their order. ConfigError for one that cannot be, or that needs a column which the rows
    (whose `columns` these are) have not.
    """
    if not run.rewards:
        raise ConfigError("rewards: is missing; for instance rewards: [{call: rewards.py:score}]")
    found = [_one(each, run.seed, columns, pins, f"rewards[{index}]") for index, each in enumerate(run.rewards)]
    names = [each.name for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"rewards: two are called {', '.join(sorted(twice))}, so their curves would be one")
    return found


def weights(run: RunFile) -> list[float]:
    """The weight of each."""
    return [float(reward.weight) for reward in run.rewards]


def _one(reward: Reward, seed: int, columns: Collection[str], pins: Mapping[str, str], place: str) -> "Judge | Scorer":
    if reward.model is not None:
        return Scorer(reward.model.rstrip("/").rpartition("/")[2], reward_source(reward.model, pins))
    if reward.call is None:
        return Judge(str(reward.name), _here(_registered(reward, columns, place)))
    function = function_of(reward.call)  # whatever is wrong with it is said before a GPU is used
    name = reward.call.replace(".", ":").rpartition(":")[2]
    apart = reward.timeout is not None or reward.isolated
    return Judge(name, Isolated(reward.call, reward.timeout, seed) if apart else _here(function))


def _here(function: Function) -> Callable[[int, Mapping[str, Any]], Any]:
    return lambda _, given: call_with(function, given)


@dataclass(frozen=True, slots=True)
class Known:
    """A reward that has a name."""

    make: Callable[..., Function]  #: from its `config`
    needs: str = ""  #: the column that it reads


def _registered(reward: Reward, columns: Collection[str], place: str) -> Function:
    name = str(reward.name)
    if name not in KNOWN:
        close = nearest(name, KNOWN)
        hint = f"did you mean {close}?" if close else f"there is {', '.join(KNOWN)}; or call: rewards.py:function"
        raise ConfigError(f"{place}: there is no reward called {name}; {hint}")
    known = KNOWN[name]
    if known.needs and known.needs not in columns:
        raise ConfigError(f"{place}: {name} reads the column {known.needs}, which the rows do not have")
    try:
        return known.make(**reward.config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: {name} does not take this config: {error}") from error


class Judge:
    """One reward, watched. Called as TRL calls one."""

    def __init__(self, name: str, ask: Callable[[int, Mapping[str, Any]], Any]) -> None:
        self.name = self.__name__ = name  # TRL calls its curve by the latter
        self._ask = ask

    def __call__(self, **given: Any) -> list[float | None]:
        state = given.get("trainer_state")
        step = int(getattr(state, "global_step", 0))
        batch = {name: value for name, value in given.items() if name not in _TRAINERS_OWN}
        count = len(batch["completions"])
        try:
            values = self._ask(step, batch)
        except Exception as error:  # a person's code: anything may come, and it is said of which sample
            raise self._blamed(step, batch, count, error) from error
        return self._checked(values, batch, count)

    def _checked(self, values: Any, batch: Mapping[str, Any], count: int) -> list[float | None]:
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
            found = f"{len(values)} values" if isinstance(values, Sequence) else shown(values)
            raise RewardError(
                f"reward {self.name}: a list with a number for each of {count} samples is wanted, found {found}"
            )
        for index, value in enumerate(values):
            if value is not None and not _is_number(value):
                raise RewardError(f"{self._of(batch, index)}: gave {shown(value)}, which is no number")
        return [None if value is None else float(value) for value in values]

    def _blamed(self, step: int, batch: Mapping[str, Any], count: int, error: Exception) -> RewardError:
        """Each sample alone, until one fails by itself."""
        for index in range(count):
            alone = {name: [value[index]] for name, value in batch.items()}
            try:
                self._ask(step, alone)
            except Exception as cause:
                return RewardError(f"{self._of(batch, index)}: {_said(cause)}")
        return RewardError(
            f"reward {self.name}: {_said(error)} (for {count} samples at once, and for none of them alone)"
        )

    def _of(self, batch: Mapping[str, Any], index: int) -> str:
        prompt, completion = shown(batch["prompts"][index], 200), shown(batch["completions"][index], 200)
        return f"reward {self.name}: sample {index + 1}: prompt {prompt}, completion {completion}"


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str) and math.isfinite(float(value))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Raised | TimeoutError) else f"{type(error).__name__}: {error}"


def loaded(rewards: Sequence["Judge | Scorer"], model_init: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL's trainers are given: the functions and models, and the tokenizers of the latter."""
    from transformers import AutoTokenizer

    functions: list[Any] = []
    tokenizers: list[Any] = []
    for each in rewards:
        if isinstance(each, Judge):
            functions.append(each)
            tokenizers.append(None)
            continue
        folder = local(each.source).folder
        scorer = load(folder, SCORE, **{"dtype": "float32", "device_map": None, **model_init})
        scorer.config._name_or_path = each.name  # as its curve is called
        functions.append(scorer)
        tokenizers.append(AutoTokenizer.from_pretrained(folder))
    return {"reward_funcs": functions, "reward_processing_classes": tokenizers}


def text_of(completion: Any) -> str:
    """What was said, of a completion that is text or messages."""
    return completion if isinstance(completion, str) else "".join(str(each["content"]) for each in completion)


def _answer(completion: Any, tag: str | None) -> str:
    """The answer in a completion: all of it, or what stands last between `<tag>` and `</tag>`."""
    text = text_of(completion)
    if tag is None:
        return text.strip()
    _, opened, after = text.rpartition(f"<{tag}>")
    return after.partition(f"</{tag}>")[0].strip() if opened else ""


def _reasoning_gym(*, tag: str | None = None) -> Function:
    def reasoning_gym(completions: list[Any], task: list[str], **_: Any) -> list[float]:
        return [generated_tasks.score(_answer(each, tag), of) for each, of in zip(completions, task, strict=True)]

    return reasoning_gym


def _exact_match(*, tag: str | None = None) -> Function:
    def exact_match(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
        return [float(_answer(each, tag) == str(of).strip()) for each, of in zip(completions, answer, strict=True)]

    return exact_match


def _of_trl(name: str, *, made: bool = False) -> Callable[..., Function]:
    """A reward function of TRL's, or one that a function of TRL's makes from its config."""

    def make(**config: Any) -> Function:
        import trl.rewards

        function: Function = getattr(trl.rewards, name)
        if made:
            return function(**config)  # type: ignore[no-any-return]
        if config:
            raise TypeError(f"it has no settings, found {json.dumps(config)}")
        return function

    return make


#: The rewards that have a name. TRL's are described in its documentation, "Reward Functions".
KNOWN: Mapping[str, Known] = {
    "reasoning_gym": Known(_reasoning_gym, "task"),
    "exact_match": Known(_exact_match, "answer"),
    "accuracy": Known(_of_trl("accuracy_reward"), "solution"),
    "reasoning_accuracy": Known(_of_trl("reasoning_accuracy_reward"), "solution"),
    "cosine_accuracy": Known(_of_trl("get_cosine_scaled_reward", made=True), "solution"),
    "think_format": Known(_of_trl("think_format_reward")),
    "repetition_penalty": Known(_of_trl("get_repetition_penalty_reward", made=True)),
    "overlong_punishment": Known(_of_trl("get_soft_overlong_punishment", made=True)),
}

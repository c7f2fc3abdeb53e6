"""Generated tasks and verified answers of reasoning-gym (https://github.com/open-thought/reasoning-gym).

A task is identified by its generator, seed and number, and is generated again where an answer is scored: a data set
holds only one line of JSON for it.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from runfile import DataSource
from runfile.mistakes import find_nearest
from trainers.data.row_formats import Row
from trainers.errors import ConfigError, HostError

DEFAULT_SIZE = 1000  #: the number of tasks, where a source sets none


def generate_rows(source: DataSource, seed: int) -> Iterator[Row]:
    """Yield the tasks of a `reasoning_gym` source as rows: `prompt`, `completion`, `answer` (the text of `completion`)
    and `task`. `seed` is for a source without one.
    """
    size = source.size or DEFAULT_SIZE
    made_by = {
        "reasoning_gym": source.reasoning_gym,
        "size": size,
        "seed": seed if source.seed is None else source.seed,
        "config": source.config,
    }
    tasks = _create_dataset(json.dumps(made_by, sort_keys=True))
    for number in range(size):
        entry = tasks[number]
        question, answer = str(entry["question"]), str(entry["answer"] if entry["answer"] is not None else "")
        yield {
            "prompt": [{"role": "user", "content": question}] if source.chat else question,
            "completion": [{"role": "assistant", "content": answer}] if source.chat else answer,
            "answer": answer,
            "task": json.dumps({**made_by, "number": number}, sort_keys=True),
        }


def score_answer(answer: str, task: str) -> float:
    """Return what the task's own verifier gives for an answer, mostly 0 to 1."""
    made_by: dict[str, Any] = json.loads(task)
    number = made_by.pop("number")
    tasks = _create_dataset(json.dumps(made_by, sort_keys=True))
    return float(tasks.score_answer(answer, tasks[number]))


@lru_cache(maxsize=64)
def _create_dataset(made_by: str) -> Any:
    """Return the generator. Raises ConfigError for one that does not exist or does not take its settings."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        lack = "data: reasoning_gym needs the package reasoning-gym (pip install 'relay-training[tasks]')"
        raise HostError(f"{lack}: {error}") from error
    asked: Mapping[str, Any] = json.loads(made_by)
    name = asked["reasoning_gym"]
    if name not in DATASETS:
        close = find_nearest(name, DATASETS)
        hint = f"did you mean {close}?" if close else "reasoning_gym.factory.DATASETS has their names"
        raise ConfigError(f"data: reasoning-gym has no tasks called {name}; {hint}")
    try:
        return reasoning_gym.create_dataset(name, size=asked["size"], seed=asked["seed"], **asked["config"])
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"data: reasoning_gym: {name} does not take this config: {error}") from error

"""A run of several epochs, killed again and again, trains the rows of a run that was never disturbed (S6)."""

from __future__ import annotations

import shutil
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from relay.v1 import runs_pb2 as pb
from tests import tiny
from tests.end_to_end.fleet import Fleet, Kind
from tests.end_to_end.test_sft import OF_TIME, result

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(1800)]

PROMPTS, EPOCHS, KILLS = 16, 3, 10
STEPS = PROMPTS * EPOCHS  #: a step learns from four answers to one prompt
#: A prompt's reward is its own, so that equal rewards mean equal rows.
REWARDS = """
def rate(completions, prompts, **_):
    return [sum(map(ord, prompt)) + len(completion) / 100 for prompt, completion in zip(prompts, completions)]
"""
SPEC: dict[str, Any] = {
    "method": "grpo",
    "model": {"name_or_path": "./model"},
    "data": {"train": "train.jsonl"},
    "rewards": [{"call": "rewards.py:rate"}],
    "files": ["rewards.py"],
    "options": {
        "max_steps": STEPS,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
    },
    "checkpoint": {"every": "1 steps"},
    "lifecycle": {"max_attempts": KILLS + 1},
    "env": {"OMP_NUM_THREADS": "1"},
    "seed": 7,
}


async def test_killed_ten_times_in_three_epochs(fleet: Fleet, tiny_model: Path) -> None:
    folder = fleet.folder / "submitter"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    tiny.make_rows(folder / "train.jsonl", count=PROMPTS, kind="prompt")
    (folder / "rewards.py").write_text(REWARDS)

    moments = sorted(Random(13).sample(range(1, STEPS - 8), KILLS))
    hosts = cycle([fleet.new_host("a"), fleet.new_host("b")])
    host = next(hosts)
    await host.start()
    disturbed = await fleet.submit(SPEC, "disturbed")
    for attempt, moment in enumerate(moments, 1):
        await disturbed.until(lambda event, n=attempt, step=moment: _has_saved(event, n, step))  # type: ignore[misc]
        await host.vanish()
        host = next(hosts)
        await host.start()
    ended = await disturbed.ended()
    assert ended.state == pb.Run.SUCCEEDED, ended.error
    assert len(await disturbed.attempts()) == KILLS + 1

    straight = await fleet.submit(SPEC, "straight")
    assert (await straight.ended()).state == pb.Run.SUCCEEDED
    curve, expected = await disturbed.curve(), await straight.curve()
    assert [step for step, _ in curve["reward"]] == list(range(1, STEPS + 1))
    assert len({round(value) for _, value in curve["reward"]}) > PROMPTS / 2
    for metric in set(curve) | set(expected):
        if not any(word in metric for word in OF_TIME):
            assert curve[metric] == expected[metric], metric
    weights = await result(fleet, "disturbed")
    assert weights and weights == await result(fleet, "straight")


def _has_saved(event: pb.RunEvent, attempt: int, step: int) -> bool:
    """Return whether an attempt has saved this step or a later one."""
    return event.kind == Kind.CHECKPOINT and event.attempt == attempt and cast(float, event.details["step"]) >= step

"""When a checkpoint is due: by steps, or by a clock that the test controls."""

import pytest

from runfile import Every
from tests.trainers.deferred import deferred_imports

with deferred_imports():
    from trainers import callbacks


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_by_steps() -> None:
    pace = callbacks.CheckpointInterval(Every(steps=3))
    assert [step for step in range(1, 10) if pace.is_due(step)] == [3, 6, 9]


def test_by_time_counted_from_the_last_save() -> None:
    clock = Clock()
    pace = callbacks.CheckpointInterval(Every(seconds=60.0), clock)
    assert not pace.is_due(1)
    clock.now += 59.5
    assert not pace.is_due(2)
    clock.now += 0.5
    assert pace.is_due(3)
    clock.now += 30.0  # the save itself took long
    pace.mark_saved()
    assert not pace.is_due(4)
    clock.now += 60.0
    assert pace.is_due(5)


@pytest.mark.parametrize("steps", [1, 7])
def test_steps_do_not_look_at_the_clock(steps: int) -> None:
    clock = Clock()
    pace = callbacks.CheckpointInterval(Every(steps=steps), clock)
    clock.now += 1e6
    assert pace.is_due(steps) and pace.is_due(steps + 1) == (steps == 1)

"""When to save: by steps, or by a clock that the test holds."""

import pytest

from runfile import Every
from trainers.callbacks import Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_by_steps() -> None:
    pace = Pace(Every(steps=3))
    assert [step for step in range(1, 10) if pace.due(step)] == [3, 6, 9]


def test_by_time_counted_from_the_last_save() -> None:
    clock = Clock()
    pace = Pace(Every(seconds=60.0), clock)
    assert not pace.due(1)
    clock.now += 59.5
    assert not pace.due(2)
    clock.now += 0.5
    assert pace.due(3)
    clock.now += 30.0  # the save itself took long
    pace.saved()
    assert not pace.due(4)
    clock.now += 60.0
    assert pace.due(5)


@pytest.mark.parametrize("steps", [1, 7])
def test_steps_do_not_look_at_the_clock(steps: int) -> None:
    clock = Clock()
    pace = Pace(Every(steps=steps), clock)
    clock.now += 1e6
    assert pace.due(steps) and pace.due(steps + 1) == (steps == 1)

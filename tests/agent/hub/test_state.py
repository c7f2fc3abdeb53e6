"""What keeping state costs, in words; how long a Hub that is away is waited for."""

from random import Random

from agent.hub.retry import LONGEST, Patience
from agent.hub.state import cost
from runfile import Every


def test_the_cost_of_a_save_and_of_a_day() -> None:
    said = cost(96_000_000_000, Every(seconds=600.0))
    assert said == "each save is 96.0 GB, one every 10 min: 13824.0 GB a day"
    assert cost(5_000_000, Every(steps=500)) == "each save is 5.0 MB, one every 500 steps"


def test_waits_grow_and_are_as_long_as_told() -> None:
    patience = Patience(Random(1))
    waits = [patience.wait(0.0) for _ in range(20)]
    assert max(waits) <= LONGEST and max(waits[:2]) < max(waits[10:])
    assert patience.wait(3000.0) == 3000.0
    assert patience.relieved() and not patience.relieved()

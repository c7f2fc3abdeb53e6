"""What keeping state costs, in words."""

from agent.hub.state import describe_cost
from runfile import Every


def test_the_cost_of_a_save_and_of_a_day() -> None:
    said = describe_cost(96_000_000_000, Every(seconds=600.0))
    assert said == "each save is 96.0 GB, one every 10 min: 13824.0 GB a day"
    assert describe_cost(5_000_000, Every(steps=500)) == "each save is 5.0 MB, one every 500 steps"

"""When missing heartbeats are not the agents' fault."""

import pytest

from coordinator.outage import ReaperTick, find_outage

HEARTBEAT = 5.0


def tick(*ages: float, **more: float) -> ReaperTick:
    """A tick a second after the last, with agents last heard so long ago."""
    return ReaperTick(**{"gap": 1.0, "clock": 1.0, "elapsed": 1.0, "heartbeat_ages": ages, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (tick(1, 2, 3), ""),
        (tick(), ""),
        (ReaperTick(None, None, None, [1.0]), ""),
        (tick(1, gap=11), "the coordinator or its database was away for 11.0 s"),
        (tick(1, gap=-3600), "the database's clock was set back"),
        (tick(1, clock=3601.0), "the database's clock jumped by 3600.0 s"),
        (tick(1, clock=1.0, elapsed=9.0), "the database's clock jumped by -8.0 s"),
        (tick(11), "no agent responds"),
        (tick(11, 400), "no agent responds"),
        (tick(1, 31), ""),  # one of two: a host that died
        (tick(1, 31, 31), ""),  # fewer than four agents say nothing together
        (tick(1, 31, 31, 31), "3 of 4 agents stopped responding together"),
        (tick(1, 2, 31, 31), ""),  # half is not more than half
        (tick(1, 11, 31, 71), ""),  # one after the other
        (tick(1, 31, 33, 41), "3 of 4 agents stopped responding together"),
        (tick(1, 31, 31, 31, graced=5), ""),  # judged once: this silence is older than the grace it had
        (tick(1, 12, 12, 12, graced=600), "3 of 4 agents stopped responding together"),
    ],
)
def test_what_suspends_lapsing(seen: ReaperTick, why: str) -> None:
    assert find_outage(seen, heartbeat=HEARTBEAT) == why

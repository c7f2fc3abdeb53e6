"""The outage rules: when missing heartbeats are not the agents' fault, so that nothing may lapse. Pure.

A lapse is meant for a host that died. When the coordinator was away, or its clock jumped, or so many agents stopped
responding together that the network between is to blame, nothing may lapse until the agents had a full TTL to be heard
again. A long outage of everything costs nothing, since no host is there to be granted anything. When a part of the
fleet is really gone, its runs are delayed once, by one TTL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_AGENTS = 4  #: agents, from which on "more than half" is significant


@dataclass(frozen=True, slots=True)
class ReaperTick:
    """What the reaper observes, in seconds.

    `gap` is the database's time since the last tick of any reaper and `clock` since the last tick of this one;
    `elapsed` is the latter by this process's monotonic clock, None without an earlier tick. `heartbeat_ages` are the
    times since the last heartbeat of each agent that counts, `graced` is the time since the last grace period began,
    None without one.
    """

    gap: float | None
    clock: float | None
    elapsed: float | None
    heartbeat_ages: Sequence[float]
    graced: float | None = None


def find_outage(tick: ReaperTick, *, heartbeat: float) -> str:
    """Return why nothing may lapse for a full TTL from now, for the log; empty when there is no outage."""
    if tick.gap is not None and tick.gap > 2 * heartbeat:
        return f"the coordinator or its database was away for {tick.gap:.1f} s"
    if tick.gap is not None and tick.gap < -heartbeat:
        return "the database's clock was set back"
    if tick.clock is not None and tick.elapsed is not None and abs(tick.clock - tick.elapsed) > heartbeat:
        return f"the database's clock jumped by {tick.clock - tick.elapsed:.1f} s"
    late = sorted(age for age in tick.heartbeat_ages if age > 2 * heartbeat)
    if late and len(late) == len(tick.heartbeat_ages):
        return "no agent responds"
    fresh = [age for age in late if tick.graced is None or age < tick.graced + 2 * heartbeat]
    together = _most_within(fresh, 2 * heartbeat)
    if len(tick.heartbeat_ages) >= MIN_AGENTS and 2 * together > len(tick.heartbeat_ages):
        return f"{together} of {len(tick.heartbeat_ages)} agents stopped responding together"
    return ""


def _most_within(ordered: Sequence[float], span: float) -> int:
    """Return the largest number of values that lie within a span of each other."""
    most, first = 0, 0
    for last, value in enumerate(ordered):
        while value - ordered[first] > span:
            first += 1
        most = max(most, last - first + 1)
    return most

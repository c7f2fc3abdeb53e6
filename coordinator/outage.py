"""When silence is not the agents': whether lapsing must wait. Pure.

Lapses are for hosts that died. When this side was away, or its clock jumped, or so many agents fell silent together
that the line between is to blame, nothing may lapse until they had the time to be heard again: a full TTL. A long
outage of everything costs nothing, since nobody is there to be granted anything; but a part of the fleet that is
really gone delays its runs by one TTL only, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_AGENTS = 4  #: agents, before "more than half" says something


@dataclass(frozen=True, slots=True)
class ReaperTick:
    """What the reaper sees. Seconds; `elapsed` is None when it has no earlier tick of its own to compare with.

    `gap` is the database's time since any reaper's last tick, `clock` since this one's, `elapsed` the same by this
    process's monotonic clock. `silences` are the times since the agents that count were heard, `graced` the time since
    the last grace began (None: never).
    """

    gap: float | None
    clock: float | None
    elapsed: float | None
    silences: Sequence[float]
    graced: float | None = None


def find_outage(tick: ReaperTick, *, heartbeat: float) -> str:
    """Why lapsing must wait a full TTL from now, in words; empty when it need not."""
    if tick.gap is not None and tick.gap > 2 * heartbeat:
        return f"the coordinator or its database was away for {tick.gap:.1f} s"
    if tick.gap is not None and tick.gap < -heartbeat:
        return "the database's clock was set back"
    if tick.clock is not None and tick.elapsed is not None and abs(tick.clock - tick.elapsed) > heartbeat:
        return f"the database's clock jumped by {tick.clock - tick.elapsed:.1f} s"
    silent = sorted(silence for silence in tick.silences if silence > 2 * heartbeat)
    if silent and len(silent) == len(tick.silences):
        return "all agents are silent"
    fresh = [silence for silence in silent if tick.graced is None or silence < tick.graced + 2 * heartbeat]
    together = _most_within(fresh, 2 * heartbeat)
    if len(tick.silences) >= MIN_AGENTS and 2 * together > len(tick.silences):
        return f"{together} of {len(tick.silences)} agents fell silent together"
    return ""


def _most_within(ordered: Sequence[float], span: float) -> int:
    """The most values that lie within a span of each other."""
    most, first = 0, 0
    for last, value in enumerate(ordered):
        while value - ordered[first] > span:
            first += 1
        most = max(most, last - first + 1)
    return most

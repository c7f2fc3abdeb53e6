"""How fast a trainer steps, when its next step ends, and whether it has stalled. Pure: times are passed in."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

RECENT = 50  #: how many step times are remembered
STARTING = 3600.0  #: seconds that a trainer may take to its first step under `auto`
LEAST, TIMES_STEP, TIMES_GAP = 600.0, 20.0, 3.0  #: `auto`: the greatest of ten minutes, 20 steps, 3 longest pauses


class TrainerProgress:
    """The observed progress of one trainer. `limit` is the run file's `stall_after`, in seconds or `auto`."""

    def __init__(self, limit: float | Literal["auto"], now: float, *, contract: bool = True) -> None:
        self._limit = limit
        self._contract = contract  #: whether it reports steps, which a command need not
        self._last = now  #: time of the newest progress
        self._timed: float | None = None  #: time at which the newest step was reported, if it was read live
        self._longest = 0.0
        self._times: deque[float] = deque(maxlen=RECENT)
        self.step: int | None = None

    def record_step(self, step: int, now: float, *, live: bool = True) -> None:
        """Note a reported `step`. Not live: the line was read back from the file, so its time says nothing."""
        if self.step is not None and step <= self.step:
            return
        if live and self._timed is not None and self.step is not None:
            self._times.append((now - self._timed) / (step - self.step))
            self._longest = max(self._longest, now - self._timed)
        self.step, self._last, self._timed = step, now, now if live else None

    def record_write(self, now: float) -> None:
        """Note that the trainer wrote something, which counts as progress while it reports no steps."""
        if self.step is None:
            self._last = now

    @property
    def step_time(self) -> float | None:
        """Return how many seconds nearly all recent steps stayed below; None before the second step."""
        times = sorted(self._times)
        return times[math.ceil(0.9 * len(times)) - 1] if times else None

    def seconds_to_step_end(self, now: float) -> float | None:
        """Return the seconds until the current step should end; None when that is unknown."""
        if self.step_time is None or self._timed is None:
            return None
        return max(0.0, self._timed + self.step_time - now)

    @property
    def limit(self) -> float | None:
        """Return how many seconds without progress count as a stall; None when stalls are not watched for."""
        if self._limit != "auto":
            return self._limit
        if self.step is None:
            return STARTING if self._contract else None
        return max(LEAST, TIMES_STEP * (self.step_time or 0.0), TIMES_GAP * self._longest)

    def describe_stall(self, now: float) -> str:
        """Return in words why the trainer counts as stalled; empty when it does not."""
        silence, limit = now - self._last, self.limit
        if limit is None or silence < limit:
            return ""
        where = f"after step {self.step}" if self.step is not None else "before its first step"
        return f"no progress for {silence:.0f} s {where} (limit {limit:.0f} s)"

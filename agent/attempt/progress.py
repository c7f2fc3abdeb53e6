"""How fast a trainer steps, when its next step ends, and whether it has stalled. Pure: moments come from outside."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

RECENT = 50  #: step times remembered
STARTING = 3600.0  #: seconds a trainer may take to its first step under `auto`
LEAST, TIMES_STEP, TIMES_GAP = 600.0, 20.0, 3.0  #: `auto`: the greatest of ten minutes, 20 steps, 3 longest pauses


class TrainerProgress:
    """What was seen of one trainer. `limit` is the run file's `stall_after`, in seconds or `auto`."""

    def __init__(self, limit: float | Literal["auto"], now: float, *, contract: bool = True) -> None:
        self._limit = limit
        self._contract = contract  #: it reports steps; a command need not
        self._last = now  #: the newest sign of progress
        self._timed: float | None = None  #: when the newest step was reported, if that was seen live
        self._longest = 0.0
        self._times: deque[float] = deque(maxlen=RECENT)
        self.step: int | None = None

    def record_step(self, step: int, now: float, *, live: bool = True) -> None:
        """The trainer reported `step`. Not live: it was read back from the file, so its time says nothing."""
        if self.step is not None and step <= self.step:
            return
        if live and self._timed is not None and self.step is not None:
            self._times.append((now - self._timed) / (step - self.step))
            self._longest = max(self._longest, now - self._timed)
        self.step, self._last, self._timed = step, now, now if live else None

    def record_write(self, now: float) -> None:
        """It wrote something. That is progress as long as it reports no steps."""
        if self.step is None:
            self._last = now

    @property
    def step_time(self) -> float | None:
        """Seconds that nearly all recent steps stayed below; None before the second step."""
        times = sorted(self._times)
        return times[math.ceil(0.9 * len(times)) - 1] if times else None

    def seconds_to_step_end(self, now: float) -> float | None:
        """Seconds until the step that runs now should end; None when that cannot be said."""
        if self.step_time is None or self._timed is None:
            return None
        return max(0.0, self._timed + self.step_time - now)

    @property
    def limit(self) -> float | None:
        """Seconds without progress that mean a stall; None when nothing does."""
        if self._limit != "auto":
            return self._limit
        if self.step is None:
            return STARTING if self._contract else None
        return max(LEAST, TIMES_STEP * (self.step_time or 0.0), TIMES_GAP * self._longest)

    def describe_stall(self, now: float) -> str:
        """Why it counts as stalled, in words; empty when it does not."""
        silence, limit = now - self._last, self.limit
        if limit is None or silence < limit:
            return ""
        where = f"after step {self.step}" if self.step is not None else "before its first step"
        return f"no progress for {silence:.0f} s {where} (limit {limit:.0f} s)"

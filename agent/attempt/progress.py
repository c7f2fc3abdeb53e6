"""How fast a trainer steps, when its next step ends, and whether it has stalled. Pure: times are passed in.

What is no step takes its own time: loading a model, compiling, a rollout, an evaluation, a save. A trainer reports such
phases, each of which has a limit of its own. A phase counts as progress when it is entered, and whenever more of it is
done, but only once for the same amount between two steps: whoever goes round in circles makes no progress.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Literal

RECENT = 50  #: how many step times are remembered
STARTING = 3600.0  #: seconds that a trainer may take to its first step under `auto`
LEAST, TIMES_STEP, TIMES_GAP = 600.0, 20.0, 3.0  #: `auto`: the greatest of ten minutes, 20 steps, 3 longest pauses
TRAINING = "training"  #: the phase in which steps are trained, whose limit is that of steps
#: `auto`: the least seconds that a phase may go without an advance, or three times the longest that it has taken.
PHASE_LIMITS: Mapping[str, float] = {
    "loading": 3600.0,
    "first_step": 3600.0,  # compiles, or starts vLLM
    "skipping": 3600.0,  # of the rows that an earlier attempt has trained on
    "generating": 1800.0,
    "evaluating": 1800.0,
    "saving": 3600.0,
}
OTHER_PHASE = 1800.0  #: the same of a phase that a program has named itself


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
        self.phase: str | None = None  #: None while steps are trained
        self._done = 0  #: how much of the phase is done
        self._advanced = False  #: whether the phase has counted as progress
        self._reached: dict[str, int] = {}  #: how much of each phase was done since the newest step
        self._gaps: dict[str, float] = {}  #: the longest that each phase has gone without an advance

    def record_step(self, step: int, now: float, *, live: bool = True) -> None:
        """Note a reported `step`. Not live: the line was read back from the file, so its time says nothing."""
        if self.step is not None and step <= self.step:
            return
        if live and self._timed is not None and self.step is not None:
            self._times.append((now - self._timed) / (step - self.step))
            self._longest = max(self._longest, now - self._timed)
        self._learn(now, live)
        self.step, self._last, self._timed = step, now, now if live else None
        self.phase, self._advanced, self._reached = None, False, {}

    def record_phase(self, phase: str, done: int, now: float, *, live: bool = True) -> None:
        """Note a reported phase, of which `done` parts are over."""
        advances = self._advanced if phase == TRAINING else done > self._reached.get(phase, -1)
        if advances:
            self._learn(now, live)
            self._last = now
        if phase == TRAINING:
            self.phase, self._advanced = None, False
            return
        self._advanced = advances or (self._advanced and phase == self.phase)
        self.phase, self._done = phase, done
        self._reached[phase] = max(done, self._reached.get(phase, -1))

    def _learn(self, now: float, live: bool) -> None:
        """Remember how long the present phase went without an advance, which did not mean that it had stalled."""
        if live and self.phase is not None:
            self._gaps[self.phase] = max(self._gaps.get(self.phase, 0.0), now - self._last)

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
        if self.phase is not None:
            return max(PHASE_LIMITS.get(self.phase, OTHER_PHASE), TIMES_GAP * self._gaps.get(self.phase, 0.0))
        if self.step is None:
            return STARTING if self._contract else None
        return max(LEAST, TIMES_STEP * (self.step_time or 0.0), TIMES_GAP * self._longest)

    def describe_stall(self, now: float) -> str:
        """Return in words why the trainer counts as stalled; empty when it does not."""
        silence, limit = now - self._last, self.limit
        if limit is None or silence < limit:
            return ""
        where = f"after step {self.step}" if self.step is not None else "before its first step"
        if self.phase is not None:
            where = f"in phase {self.phase} ({self._done} done) {where}"
        return f"no progress for {silence:.0f} s {where} (limit {limit:.0f} s)"

"""Waiting for a Hub that is away: as long as it says, else longer and longer, at random."""

from __future__ import annotations

from random import Random

FIRST, LONGEST = 5.0, 600.0


class Patience:
    """How long to wait after each failure in a row. Pure but for its dice."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._failures = 0

    def wait(self, told: float) -> float:
        """Seconds until the next try; at least what the Hub told."""
        self._failures += 1
        most = min(LONGEST, FIRST * 2.0 ** min(self._failures, 16))
        return max(told, self._random.uniform(0.0, most))

    def relieved(self) -> bool:
        """It works; whether it had not."""
        failures, self._failures = self._failures, 0
        return failures > 0

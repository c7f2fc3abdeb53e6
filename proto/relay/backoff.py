"""Exponential backoff with full jitter: how long to wait before the next try. Pure but for the dice that it is given.

The bound doubles with every failure in a row, up to a cap, and the pause is drawn evenly from zero up to the bound, so
that clients which failed together do not come back together. The formula is "Full Jitter" of Marc Brooker,
"Exponential Backoff And Jitter" (AWS Architecture Blog, 2015):

    sleep = random_between(0, min(cap, base * 2 ** attempt))
"""

from __future__ import annotations

from random import Random

_MAX_DOUBLINGS = 30  #: more of them change nothing that a cap would not, and a float has an end


class Backoff:
    """The pauses between tries of one thing: `first` and `longest` bound the first pause and any pause, in seconds."""

    def __init__(self, first: float, longest: float, random: Random) -> None:
        self._first = first
        self._longest = longest
        self._random = random
        self.failures = 0  #: in a row, each of which was given a pause

    def next_pause(self, at_least: float = 0.0) -> float:
        """Count one more failure and return the seconds to wait before the next try.

        A server that says when to come back is taken at its word: the pause is never shorter than `at_least`.
        """
        bound = min(self._longest, self._first * 2.0 ** min(self.failures, _MAX_DOUBLINGS))
        self.failures += 1
        return max(at_least, self._random.uniform(0.0, bound))

    def reset(self) -> bool:
        """Start over after a success; return whether there had been a failure."""
        failed, self.failures = self.failures > 0, 0
        return failed

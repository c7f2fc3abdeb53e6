"""When a checkpoint is due. Pure: the clock comes from outside."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from runfile import Every


@dataclass(slots=True)
class Pace:
    """`checkpoint.every` as a question that is asked after each step."""

    every: Every
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def due(self, step: int) -> bool:
        if self.every.steps is not None:
            return step % self.every.steps == 0
        return self.clock() - self._saved_at >= (self.every.seconds or 0.0)

    def saved(self) -> None:
        self._saved_at = self.clock()

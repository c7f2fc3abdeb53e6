"""How fast bytes may go, all transfers together, so that training keeps its line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pace:
    """At most `rate` bytes in a second, over all who ask; None: as fast as it goes."""

    def __init__(self, rate: float | None = None, now: Callable[[], float] | None = None) -> None:
        self._rate = rate
        self._now = now
        self._free = 0.0  #: when the line is free again

    async def take(self, size: int) -> None:
        """Until that many more bytes may go."""
        if self._rate is None:
            return
        now = (self._now or asyncio.get_running_loop().time)()
        self._free = max(self._free, now) + size / self._rate
        await asyncio.sleep(self._free - now)

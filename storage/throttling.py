"""What keeps transfers from disturbing the training beside them: few at a time, and a limit on their rate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

STREAMS = 2  #: files in transfer at once: training on this host needs its cores and its network, too


async def for_each_limited(items: Iterable[T], work: Callable[[T], Awaitable[None]], streams: int = STREAMS) -> None:
    """Call `work` on every item, at most `streams` at a time. The first failure cancels the others and is raised."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


class RateLimit:
    """A limit on the bytes per second of all transfers that share it; None sets no limit."""

    def __init__(self, rate: float | None = None, now: Callable[[], float] | None = None) -> None:
        """`rate` is in bytes per second; `now` is a clock in seconds, the event loop's by default."""
        self._rate = rate
        self._now = now
        self._free_at = 0.0  #: when the bytes granted so far have been sent

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes may be sent."""
        if self._rate is None:
            return
        now = (self._now or asyncio.get_running_loop().time)()
        self._free_at = max(self._free_at, now) + size / self._rate
        await asyncio.sleep(self._free_at - now)

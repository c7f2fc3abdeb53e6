"""A few transfers at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

STREAMS = 2  #: files on their way at once: training on this host needs its cores and its line, too


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], streams: int = STREAMS) -> None:
    """`work` on every item, a few at a time. The first failure stops the others and is raised as it is."""
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

"""Blocking work in a thread beside an event loop."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread like `asyncio.to_thread`, but wait for the thread even when cancelled.

    So the caller can always close afterwards what the function uses (a descriptor, a lock). A cancelled call loses its
    result: a function that opens something must leave it where the caller finds it, in an ExitStack.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # the caller is cancelled and will not see it
        raise

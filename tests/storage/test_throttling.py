"""A cap on all transfers together."""

import asyncio

from storage.throttling import RateLimit


async def test_all_who_ask_share_the_rate() -> None:
    """A million bytes a second: what eight take at once, a fifth of that, takes a fifth of a second."""
    rate_limit, loop = RateLimit(1_000_000.0), asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(rate_limit.take(25_000) for _ in range(8)))
    assert loop.time() - began >= 0.2


async def test_without_a_rate_nobody_waits() -> None:
    began = asyncio.get_running_loop().time()
    for _ in range(1000):
        await RateLimit().take(1 << 40)
    assert asyncio.get_running_loop().time() - began < 5

"""Orders on their way to a shim that is slow, silent or gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.attempt.directives import Orders
from agent.attempt.exit_classification import Order, Stop
from agent.shim.processes import boottime
from agent.shim_client.jobs import ShimGone, ShimSilent

GENTLE, SHARP = Order(Stop.REQUESTED, 60.0, "pause"), Order(Stop.REQUESTED, 0.0, "cancel")


class Recorder:
    """A shim that keeps what it is told, and fails as the test wants first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.heard: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        self.slow = asyncio.Event()
        self.slow.set()

    async def _hear(self, what: str, value: float) -> None:
        self.heard.put_nowait((what, value))
        await self.slow.wait()
        if self.failures:
            raise self.failures.pop(0)

    async def stop(self, grace: float, reason: str) -> None:
        await self._hear("stop", grace)

    async def kill(self, reason: str) -> None:
        await self._hear("kill", 0.0)

    async def trust(self, deadline: float) -> None:
        await self._hear("trust", deadline)


@asynccontextmanager
async def passing(orders: Orders, shim: Recorder) -> AsyncIterator[None]:
    passing_on = asyncio.create_task(orders.pass_on(shim))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(60):
            yield
    finally:
        passing_on.cancel()
        await asyncio.gather(passing_on, return_exceptions=True)


async def test_an_order_made_sharper_on_its_way_is_passed_on_again() -> None:
    orders, shim = Orders("l", boottime), Recorder()
    shim.slow.clear()
    async with passing(orders, shim):
        orders.sharpen(GENTLE)
        assert await shim.heard.get() == ("stop", 60.0)
        orders.sharpen(SHARP)
        orders.sharpen(GENTLE)
        shim.slow.set()
        assert await shim.heard.get() == ("kill", 0.0)
    assert shim.heard.empty()


async def test_a_silent_shim_is_told_again_trust_first() -> None:
    orders, shim = Orders("l", boottime), Recorder(ShimSilent(), ShimSilent())
    orders.extend(7.0)
    orders.extend(5.0)
    orders.sharpen(GENTLE)
    async with passing(orders, shim):
        assert [await shim.heard.get() for _ in range(4)] == [("trust", 7.0)] * 3 + [("stop", 60.0)]


async def test_what_a_shim_that_has_ended_is_told_ends_nothing() -> None:
    orders, shim = Orders("l", boottime), Recorder(ShimGone())
    async with passing(orders, shim):
        orders.sharpen(GENTLE)
        await shim.heard.get()
        orders.extend(9.0)
        assert await shim.heard.get() == ("trust", 9.0)


async def test_an_old_promise_is_no_trust() -> None:
    """S3."""
    orders = Orders("l", boottime)
    waiting = asyncio.create_task(orders.trusted())
    orders.extend(boottime() - 1.0)
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    orders.extend(boottime() + 60.0)
    async with asyncio.timeout(60):
        await waiting

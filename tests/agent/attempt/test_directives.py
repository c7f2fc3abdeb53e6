"""Orders on their way to a shim that is slow, silent or gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.attempt.directives import Directives
from agent.attempt.exit_classification import StopCause, StopDirective
from agent.shim.processes import boottime
from agent.shim_client.jobs import ShimGone, ShimUnresponsive

GENTLE, SHARP = StopDirective(StopCause.REQUESTED, 60.0, "pause"), StopDirective(StopCause.REQUESTED, 0.0, "cancel")


class Recorder:
    """A shim that records its requests, and first fails as the test wants."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.heard: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        self.slow = asyncio.Event()
        self.slow.set()

    async def _record(self, what: str, value: float) -> None:
        self.heard.put_nowait((what, value))
        await self.slow.wait()
        if self.failures:
            raise self.failures.pop(0)

    async def stop(self, grace: float, reason: str) -> None:
        await self._record("stop", grace)

    async def kill(self, reason: str) -> None:
        await self._record("kill", 0.0)

    async def trust(self, deadline: float) -> None:
        await self._record("trust", deadline)


@asynccontextmanager
async def passing(orders: Directives, shim: Recorder) -> AsyncIterator[None]:
    passing_on = asyncio.create_task(orders.forward(shim))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(60):
            yield
    finally:
        passing_on.cancel()
        await asyncio.gather(passing_on, return_exceptions=True)


async def test_an_order_made_sharper_on_its_way_is_passed_on_again() -> None:
    orders, shim = Directives(boottime), Recorder()
    shim.slow.clear()
    async with passing(orders, shim):
        orders.strengthen(GENTLE)
        assert await shim.heard.get() == ("stop", 60.0)
        orders.strengthen(SHARP)
        orders.strengthen(GENTLE)
        shim.slow.set()
        assert await shim.heard.get() == ("kill", 0.0)
    assert shim.heard.empty()


async def test_a_silent_shim_is_told_again_trust_first() -> None:
    orders, shim = Directives(boottime), Recorder(ShimUnresponsive(), ShimUnresponsive())
    orders.extend_trust(7.0)
    orders.extend_trust(5.0)
    orders.strengthen(GENTLE)
    async with passing(orders, shim):
        assert [await shim.heard.get() for _ in range(4)] == [("trust", 7.0)] * 3 + [("stop", 60.0)]


async def test_what_a_shim_that_has_ended_is_told_ends_nothing() -> None:
    orders, shim = Directives(boottime), Recorder(ShimGone())
    async with passing(orders, shim):
        orders.strengthen(GENTLE)
        await shim.heard.get()
        orders.extend_trust(9.0)
        assert await shim.heard.get() == ("trust", 9.0)


async def test_an_old_promise_is_no_trust() -> None:
    """S3."""
    orders = Directives(boottime)
    waiting = asyncio.create_task(orders.wait_trusted())
    orders.extend_trust(boottime() - 1.0)
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    orders.extend_trust(boottime() + 60.0)
    async with asyncio.timeout(60):
        await waiting

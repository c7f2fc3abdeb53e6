"""The virtual loop: time jumps, the seed decides the order, frozen processes wait, killed ones never run again."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from tests.simulation.loop import Process, Stalled, VirtualLoop


def loop_of(seed: int) -> VirtualLoop:
    return VirtualLoop(Random(seed), lambda: 0.001)


def order(seed: int) -> list[int]:
    """In which order ten tasks that are ready at once run."""
    loop, ran = loop_of(seed), list[int]()

    async def run(number: int) -> None:
        await asyncio.sleep(3600)
        ran.append(number)

    async def together() -> None:
        await asyncio.gather(*(run(number) for number in range(10)))

    loop.run_until_complete(together())
    assert loop.time() == 3600
    loop.wind_up()
    return ran


def test_the_seed_decides_the_order_and_an_hour_takes_no_time() -> None:
    assert order(1) == order(1) != order(2)


def test_a_frozen_process_goes_on_where_it_was_and_a_killed_one_never() -> None:
    loop = loop_of(0)
    frozen, killed = Process(loop, "frozen"), Process(loop, "killed")
    ticks: list[tuple[str, float]] = []

    async def tick(name: str) -> None:
        while True:
            await asyncio.sleep(1)
            ticks.append((name, loop.time()))

    frozen.spawn(tick("frozen"))
    killed.spawn(tick("killed"))
    loop.call_later(1.5, frozen.freeze)
    loop.call_later(1.5, killed.kill)
    loop.call_later(9.5, frozen.thaw)
    loop.run_until_complete(asyncio.sleep(11))
    assert [time for name, time in ticks if name == "killed"] == [1]
    assert [time for name, time in ticks if name == "frozen"] == [1, 9.5, 10.5]
    loop.wind_up()


def test_what_can_never_go_on_is_said() -> None:
    loop = loop_of(0)
    with pytest.raises(Stalled):
        loop.run_until_complete(loop.create_future())
    loop.wind_up()

"""A backlog of one."""

import asyncio

from agent.checkpoints.publisher import LatestSlot


async def test_only_the_newest_is_kept_and_settled_means_nothing_is_left() -> None:
    place: LatestSlot[int] = LatestSlot()
    await place.drain()
    place.put(1)
    place.put(2)
    await place.wait()
    settled = asyncio.create_task(place.drain())
    with place.take() as item:
        assert item == 2 and place.working == 2 and place.waiting is None
        place.put(3)
    assert not settled.done()
    with place.take() as item:
        assert item == 3
    await settled


async def test_work_that_fails_leaves_the_place_usable() -> None:
    place: LatestSlot[str] = LatestSlot()
    place.put("a")
    try:
        with place.take():
            raise OSError
    except OSError:
        pass
    await place.drain()

"""A host whose disk takes longer for a checkpoint than a lease lasts: it keeps its lease (F14, S2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from relay.timing import TEST
from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind
from tests.faults.slow_disk import RATE, Unthrottled, slow_disk
from tests.seaweed import BUCKET, environment, seaweed

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]
STEPS, SAVED = 6, 3


@pytest.fixture
def within(tmp_path: Path) -> Iterator[Sequence[str]]:
    """Asked for before the fleet: when it goes, nothing of that is alive any more."""
    try:
        with slow_disk(tmp_path) as throttle:
            yield throttle
    except Unthrottled as reason:
        pytest.skip(str(reason))


async def keeps_its_lease(fleet: Fleet, within: Sequence[str], store: str) -> None:
    host = fleet.new_host("a", within=within)
    await host.start()
    spec = fleet.gated(STEPS, SAVED)
    ballast = int(RATE * 2 * TEST.ttl)
    env = {**spec["env"], "BALLAST": str(ballast)}
    run = await fleet.submit({**spec, "env": env, "checkpoint": {"store": store}})
    await fleet.conductor.allow(1)
    await fleet.conductor.reached(1)
    await fleet.host("b")  # whom a lapse would give the run to; alone, a's silence would be taken for an outage
    await fleet.conductor.allow(SAVED)
    await run.checkpoint(SAVED)
    await fleet.conductor.allow(STEPS)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures, ended.faults) == (1, 0, 0)
    told = [event async for event in run.history()]
    assert not [event for event in told if event.kind in (Kind.LAPSED, Kind.RENEWED)]
    await run.has_one_curve(STEPS)
    points = {point.step: point for point in await run.checkpoints()}
    assert set(points) == {SAVED, STEPS} and all(point.parts[0].size > ballast for point in points.values())
    (step,) = (event for event in told if event.kind == Kind.CHECKPOINT and event.details["step"] == SAVED)
    (granted,) = (event for event in told if event.kind == Kind.STARTED)
    assert step.time.ToSeconds() - granted.time.ToSeconds() > TEST.ttl, "the disk was not slow"


async def test_with_the_coordinators_own_store(within: Sequence[str], fleet: Fleet) -> None:
    await keeps_its_lease(fleet, within, "relay://")


async def test_with_a_folder_on_the_same_disk(within: Sequence[str], fleet: Fleet) -> None:
    share = fleet.folder / "share"
    share.mkdir()
    await keeps_its_lease(fleet, within, share.as_uri())


async def test_with_a_bucket(
    within: Sequence[str], fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seaweed(tmp_path) as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        await keeps_its_lease(fleet, within, f"s3://{BUCKET}/runs")

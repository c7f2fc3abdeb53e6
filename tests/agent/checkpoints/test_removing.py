"""What the coordinator lets go is removed here and in stores, again and again until it is reported."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from agent.checkpoints.removing import CheckpointRemover, DiskSpace
from agent.cleanup import OpenAttempts
from agent.coordinator_client import Contact, Coordinator
from agent.folder import RunFolder
from agent.wire import Assignment
from relay.errors import SessionReplaced
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc, runs_pb2
from storage.base import Store, StoreUnavailable
from tests.agent.fake_coordinator import FakeCoordinator, Lease
from tests.agent.hosts import MakeHost, stub

LEASE = "runs/r/leases/" + "1" * 32
PLENTY, NONE = DiskSpace(90 << 30, 100 << 30), DiskSpace(1 << 30, 100 << 30)


def removal(step: int, store: str = "host", uri: str = "host://agents/a", lease: str = LEASE) -> pb.Removal:
    return pb.Removal(
        checkpoint=f"runs/r/checkpoints/{step}", lease=lease, attempt=1, step=step,
        copy=runs_pb2.Copy(store=store, uri=uri),
    )  # fmt: skip


@dataclass
class Shelf:
    """A store that can be away."""

    away: bool = False
    removed: list[str] = field(default_factory=list)

    async def remove(self, uri: str) -> None:
        if self.away:
            raise StoreUnavailable("it is out of reach")
        self.removed.append(uri)


@asynccontextmanager
async def removing(
    fake: FakeCoordinator, root: Path, shelf: Shelf | None = None, room: DiskSpace = PLENTY
) -> AsyncIterator[CheckpointRemover]:
    coordinator = Coordinator(fake.address)
    async with coordinator.dial() as channel:
        stub, contact = agents_pb2_grpc.AgentsStub(channel), Contact(lambda: 0.0)
        stores = {"file": cast(Store, shelf or Shelf())}
        made = CheckpointRemover(
            "agents/a", root, stub, coordinator, contact, stores, OpenAttempts(root / "begun"), lambda _: room
        )
        made.start_session("session", 0.5)
        yield made


def sealed(root: Path, *steps: int) -> Path:
    attempt = RunFolder(root, "r").attempt(1, "1" * 32)
    attempt.create()
    for step in steps:
        attempt.checkpoint(step).mkdir()
        (attempt.checkpoint(step) / "weights.bin").write_bytes(b"w")
    return attempt.checkpoints


async def test_copies_on_the_disk_and_in_stores_go_and_are_reported(fake: FakeCoordinator, tmp_path: Path) -> None:
    folder, shelf = sealed(tmp_path, 10, 20), Shelf()
    gone = removal(5, lease=f"runs/other/leases/{'2' * 32}")  # by an agent that died before it could say so
    fake.removals = [removal(10), removal(10, "file", "file:///x/10"), gone]
    async with removing(fake, tmp_path, shelf) as removals:
        await removals.remove_scheduled()
    assert [path.name for path in folder.iterdir()] == ["step_00000020"]
    assert (shelf.removed, fake.removals, fake.disk_low) == (["file:///x/10"], [], 0)


async def test_what_cannot_be_removed_now_stays_on_the_list(fake: FakeCoordinator, tmp_path: Path) -> None:
    sealed(tmp_path, 10)
    shelf = Shelf(away=True)
    fake.removals = [removal(10, "file", "file:///x/10"), removal(10), removal(10, "s3", "s3://nobody/knows")]
    async with removing(fake, tmp_path, shelf) as removals:
        await removals.remove_scheduled()
        assert [each.copy.store for each in fake.removals] == ["file", "s3"]
        shelf.away = False
        await removals.remove_scheduled()
    assert [each.copy.store for each in fake.removals] == ["s3"]


@pytest.mark.parametrize("place", ["runs/../../etc/leases/" + "1" * 32, "runs/r/leases/../x"])
async def test_nothing_outside_the_root_is_touched(fake: FakeCoordinator, tmp_path: Path, place: str) -> None:
    """R7."""
    fake.removals = [removal(10, lease=place)]
    async with removing(fake, tmp_path) as removals:
        await removals.remove_scheduled()
    assert len(fake.removals) == 1


async def test_what_nobody_registered_of_attempts_that_are_over_goes(fake: FakeCoordinator, tmp_path: Path) -> None:
    """Of those that run, nothing is asked."""
    over = sealed(tmp_path, 10, 20)
    running = RunFolder(tmp_path, "r").attempt(2, "2" * 32)
    running.create()
    running.checkpoint(30).mkdir()
    for attempt, lease in ((RunFolder(tmp_path, "r").attempt(1, "1" * 32), LEASE), (running, "runs/r/leases/2")):
        Assignment(lease, pb.Assignment(run="runs/r")).save(attempt.assignment)
    OpenAttempts(tmp_path / "begun").add("2" * 32, running)
    fake.orphans = {(LEASE, 20), ("runs/r/leases/2", 30)}
    async with removing(fake, tmp_path) as removals:
        await removals.remove_scheduled()
        assert [path.name for path in over.iterdir()] == ["step_00000010"] and running.steps() == [30]
        fake.orphans = {(LEASE, 10)}
        await removals.remove_scheduled()
    assert list(over.iterdir()) == [] and running.steps() == [30]


async def test_a_low_disk_is_told(fake: FakeCoordinator, tmp_path: Path) -> None:
    (tmp_path / "runs/r/attempts/1-11111111/ckpt/.tmp-relay-7-step_00000010").mkdir(parents=True)
    async with removing(fake, tmp_path, room=NONE) as removals:
        serving = asyncio.create_task(removals.run())
        await fake.until(lambda: fake.disk_low)
        serving.cancel()
    assert not list((tmp_path / "runs/r/attempts/1-11111111/ckpt").iterdir())  # what a dead one was removing


def test_a_disk_is_low_by_its_share_or_by_what_is_left() -> None:
    assert NONE.low and not PLENTY.low
    assert not DiskSpace(30 << 30, 10 << 40).low and DiskSpace(10 << 30, 10 << 40).low


async def test_a_session_that_is_over_is_no_failure(fake: FakeCoordinator, tmp_path: Path) -> None:
    fake.refused_calls["ListRemovals"] = SessionReplaced()
    async with removing(fake, tmp_path) as removals:
        await removals.remove_scheduled()


async def test_killed_in_the_middle_it_is_done_by_the_next_agent(fake: FakeCoordinator, hosts: MakeHost) -> None:
    host = hosts(fake.address)
    await host.start()
    lease: Lease = await fake.grant(stub(steps=4, save_every=1))
    await fake.until(lambda: lease.ended)
    kept = sorted(lease.checkpoints)
    await host.end(signal.SIGKILL)
    folder = host.attempt("r") / "ckpt"
    (folder / f"step_{kept[0]:08d}").rename(folder / f".tmp-relay-1-step_{kept[0]:08d}")
    fake.removals = [removal(step, lease=lease.name) for step in kept[:-1]]
    await host.start()
    await fake.until(lambda: not fake.removals)
    assert [path.name for path in folder.iterdir()] == [f"step_{kept[-1]:08d}"]

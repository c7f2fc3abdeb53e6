"""Sources arrive once each, whole and in order, whatever the line does (S7, F10, F12)."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.coordinator_client import Contact, Coordinator
from agent.events.inotify import WriteWatcher
from agent.events.sources import MAX_LINE, RANGE_SIZE, EventSource, measure_final_length, read_range
from agent.events.spool import LARGEST, SMALLEST, SendWindow, Spool
from relay.v1 import agents_pb2 as pb
from tests.agent.fake_coordinator import FakeCoordinator, Lease
from tests.proxy import Proxy, Way


@asynccontextmanager
async def spooling(address: str, *sources: EventSource, keepalive: float = 0.5) -> AsyncIterator[Contact]:
    """A spool at work, with a session's signs of life that the test gives."""
    contact = Contact(asyncio.get_running_loop().time)
    spool = Spool(Coordinator(address, keepalive=keepalive), contact, heartbeat=0.5, watcher=WriteWatcher())
    spool.add(sources)
    running = asyncio.create_task(spool.run())
    try:
        yield contact
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def source(lease: Lease, path: Path, name: str = "events") -> EventSource:
    return EventSource(lease.name, 0, name, path, lines=name in ("events", "agent"))


def lines(count: int, size: int = 200) -> bytes:
    return b"".join(json.dumps({"step": step, "pad": "x" * size}).encode() + b"\n" for step in range(count))


@pytest.fixture
def lease(fake: FakeCoordinator) -> Lease:
    made = Lease("runs/r/leases/l", pb.Assignment(run="runs/r"), starts=1)
    fake.leases[made.name] = made
    return made


async def test_every_byte_arrives_once_over_a_line_that_is_cut(
    fake: FakeCoordinator, lease: Lease, tmp_path: Path
) -> None:
    events, log = tmp_path / "events.jsonl", tmp_path / "stdout.log"
    events.write_bytes(lines(20_000))
    log.write_bytes(os.urandom(2_000_000))
    async with Proxy([fake.address]) as proxy:
        both = source(lease, events), source(lease, log, "stdout")
        async with spooling(proxy.address, *both) as contact:
            for share in (1, 2, 3):
                await fake.until(lambda share=share: stored(lease) > share * 1_000_000)  # type: ignore[misc]
                proxy.cut()
                contact.record_reply()
            proxy.half_close(Way.DOWN)
            contact.record_reply()
            with events.open("ab") as file:
                file.write(lines(100))
            while both[0].acked < events.stat().st_size or both[1].acked < log.stat().st_size:
                contact.record_reply()
                await fake.wait_for_anything()
    assert lease.sources["events"] == events.read_bytes()
    assert lease.sources["stdout"] == log.read_bytes()


def stored(lease: Lease) -> int:
    return sum(map(len, lease.sources.values()))


async def test_a_coordinator_that_lost_what_it_acked_gets_it_again(
    fake: FakeCoordinator, lease: Lease, tmp_path: Path
) -> None:
    """F9: a failover; the next session says how far it has it."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(1000))
    mine = source(lease, path)
    async with spooling(fake.address, mine):
        await mine.wait_stored(path.stat().st_size)
        del lease.sources["events"][len(lines(300)) :]
        mine.sync(len(lines(300)))
        await mine.wait_stored(path.stat().st_size)
    assert lease.sources["events"] == path.read_bytes()


async def test_a_gap_is_filled_from_where_the_coordinator_says(
    fake: FakeCoordinator, lease: Lease, tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(1000))
    mine = source(lease, path)
    mine.acked = mine.sent = len(lines(500))
    async with spooling(fake.address, mine):
        await mine.wait_stored(path.stat().st_size)
    assert lease.sources["events"] == path.read_bytes()


async def test_a_line_too_long_for_any_message_is_passed_over(
    fake: FakeCoordinator, lease: Lease, tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    before, monster, after = lines(3), b"y" * (2 * MAX_LINE) + b"\n", lines(2)
    path.write_bytes(before + monster + after)
    mine = source(lease, path)
    async with spooling(fake.address, mine):
        await mine.wait_stored(path.stat().st_size)
    assert lease.sources["events"] == before + b"\0" * len(monster) + after


async def test_a_file_that_cannot_be_read_holds_up_no_other(
    fake: FakeCoordinator, lease: Lease, tmp_path: Path
) -> None:
    """A trainer may put anything in the place of its files: it is its own loss."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(3))
    (tmp_path / "stdout.log").mkdir()
    os.mkfifo(tmp_path / "stderr.log")
    mine = source(lease, path, "events")
    strange = [source(lease, tmp_path / f"{name}.log", name) for name in ("stdout", "stderr")]
    async with spooling(fake.address, *strange, mine):
        await mine.wait_stored(path.stat().st_size)
        with path.open("ab") as file:
            file.write(lines(2))
        await mine.wait_stored(path.stat().st_size)
    assert lease.sources["events"] == path.read_bytes()
    for each in strange:
        assert read_range(each.path, 0, lines=False) is None and measure_final_length(each.path, lines=False) == 0


async def test_an_ended_lease_is_let_go(fake: FakeCoordinator, lease: Lease, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(3))
    mine = source(lease, path)
    fake.leases.clear()
    async with spooling(fake.address, mine):
        await mine.lost.wait()
    assert lease.sources.get("events", b"") == b""  # and nothing of it was stored


@pytest.mark.parametrize(("size", "expected"), [(10, 10), (RANGE_SIZE + 10, RANGE_SIZE + 11), (MAX_LINE + 10, 0)])
def test_stretches_end_at_newlines(tmp_path: Path, size: int, expected: int) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"a" * size + b"\n" + b"half")
    stretch = read_range(path, 0, lines=True)
    assert stretch is not None
    assert len(stretch.data) in (expected, expected + 1) and stretch.end == size + 1
    assert read_range(path, size + 1, lines=True) is None
    assert measure_final_length(path, lines=True) == size + 1
    assert measure_final_length(path, lines=False) == size + 5


def test_nothing_comes_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert read_range(tmp_path / "none", 0, lines=False) is None
    assert measure_final_length(tmp_path / "none", lines=True) == 0


def test_the_window_follows_what_the_line_carries() -> None:
    window = SendWindow(heartbeat=4.0)
    for _ in range(20):
        window.remaining(window.size)
        window.adapt(0.01)
    assert window.size == LARGEST
    for _ in range(20):
        window.adapt(3.0)
    assert window.size == SMALLEST
    window.remaining(0)
    window.adapt(0.01)  # it was not full: nothing is learnt
    assert window.size == SMALLEST


async def test_a_backlog_goes_out_without_waiting_for_something_new(
    fake: FakeCoordinator, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L6: when the line gets better, also of a program that writes nothing more."""
    monkeypatch.setattr("agent.events.spool.POLL", 1000.0)
    events = tmp_path / "events.jsonl"
    events.write_bytes((lines(1) + lines(1, size=100_000)) * 40)  # stretches that are small, and fill the window
    backlog = source(lease, events)
    async with Proxy([fake.address]) as proxy:
        proxy.bandwidth(256_000)
        async with spooling(proxy.address, backlog, keepalive=10.0):
            await fake.until(lambda: stored(lease) > 300_000)
            proxy.heal()
            async with asyncio.timeout(60):
                await backlog.wait_stored(events.stat().st_size)
    assert lease.sources["events"] == events.read_bytes()

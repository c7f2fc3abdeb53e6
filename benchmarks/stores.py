"""A checkpoint of 1 GB in twenty files through each store, up and down.

The baseline copies the same files with the same digests and syncs; for a bucket, its own client does the same. They
take turns, each transfer in a process of its own. Further figures: what a second publication sends when one file has
changed, how far memory rises, and how much a fixed piece of work on another core is slowed down meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.report import Table, interval
from relayctl.local.deployment import LocalCoordinator
from storage.manifest import MANIFEST_FILE, describe_folder
from tests.seaweed import BUCKET, environment, seaweed

FILES = 20
WORK = 200_000  #: rounds of the piece of work


@dataclass(frozen=True, slots=True)
class Kind:
    """A store that is there, and how its processes reach it."""

    name: str
    where: str
    env: Mapping[str, str]


def measure(quick: bool) -> Table:
    """Ratios: the plain copy's seconds by the store's."""
    size, turns = (2 << 20, 1) if quick else (50 << 20, 6)
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as root:
        rows = asyncio.run(_all(Path(root), size, turns))
    columns = ("store", "up, plain / store", "down, plain / store", "up", "sent when 1 of 20 changes", "memory", "step")
    title = f"{FILES} files of {size >> 20} MiB, {turns} of each in turns"
    return Table(title, columns, rows, ("step: median time of a fixed piece of work, beside a transfer / alone",))


async def _all(root: Path, size: int, turns: int) -> list[tuple[str, ...]]:
    source = root / "source"
    await asyncio.to_thread(_make, source, size)
    rows = []
    for opened in (_shared(root), _relay(root), _bucket(root)):
        async with opened as kind:
            rows.append(await _row(kind, root, source, turns))
    return rows


def _make(source: Path, size: int) -> None:
    source.mkdir()
    for number in range(FILES):
        (source / f"shard-{number:02d}.bin").write_bytes(os.urandom(size))
    (source / MANIFEST_FILE).write_bytes(describe_folder(source, step=1).to_bytes())


def _size(source: Path) -> int:
    return sum(path.stat().st_size for path in source.glob("shard-*"))


def _change(source: Path, number: int) -> None:
    path = source / f"shard-{number % FILES:02d}.bin"
    path.write_bytes(os.urandom(path.stat().st_size))
    (source / MANIFEST_FILE).write_bytes(describe_folder(source, step=1).to_bytes())


def _renew(source: Path) -> None:
    """Nothing of it is in any store."""
    for number in range(FILES):
        _change(source, number)


@asynccontextmanager
async def _shared(root: Path) -> AsyncIterator[Kind]:
    (root / "share").mkdir()
    yield Kind("file", (root / "share").as_uri(), {})


@asynccontextmanager
async def _relay(root: Path) -> AsyncIterator[Kind]:
    coordinator = LocalCoordinator(root / "coordinator")
    try:
        yield Kind("relay", await coordinator.start(), {})
    finally:
        await coordinator.stop()


@asynccontextmanager
async def _bucket(root: Path) -> AsyncIterator[Kind]:
    with contextlib.ExitStack() as stack:
        address = await asyncio.to_thread(stack.enter_context, seaweed(root / "seaweed"))
        yield Kind("s3", f"s3://{BUCKET}/bench", {**environment(address), "BENCH_BUCKET": BUCKET})


async def _row(kind: Kind, root: Path, source: Path, turns: int) -> tuple[str, ...]:
    up, down, memory, rates = [], [], [], []
    size = await asyncio.to_thread(_size, source)
    await _transfer(kind, "copy", source, root / "target", 0)  # a server's first upload makes room for all
    for turn in range(1, turns + 1):
        await asyncio.to_thread(_renew, source)
        done = {}
        for way in _in_turns(turn):
            done[way] = await _transfer(kind, way, source, root / f"target-{way}", turn)
        up.append(done["copy"]["seconds"] / done["put"]["seconds"])
        down.append(done["recopy"]["seconds"] / done["fetch"]["seconds"])
        memory.append(max(done["put"]["memory"], done["fetch"]["memory"]))
        rates.append(size / done["put"]["seconds"] / 1e6)
    await asyncio.to_thread(_change, source, 7)
    again = await _transfer(kind, "put", source, root / "target", turns + 1)
    sent = f"{again['sent'] / (1 << 20):.0f} MiB"
    step = await _slowed(kind, source, root, turns + 2)
    return (
        kind.name,
        str(interval(up)),
        str(interval(down)),
        f"{median(rates):.0f} MB/s",
        sent,
        f"{max(memory) / (1 << 20):.0f} MiB",
        f"{step:.3f}",
    )


def _in_turns(turn: int) -> tuple[str, ...]:
    """Whoever comes second finds what the first has stirred up, so it is not always the same one."""
    return ("put", "copy", "fetch", "recopy") if turn % 2 else ("copy", "put", "recopy", "fetch")


async def _transfer(kind: Kind, way: str, source: Path, target: Path, step: int) -> dict[str, float]:
    argv = [
        sys.executable,
        "-m",
        "benchmarks.transfer",
        way,
        kind.name,
        kind.where,
        str(source),
        str(target),
        str(step),
    ]
    os.sync()
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, env=os.environ | dict(kind.env)
    )
    said, _ = await process.communicate()
    await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
    assert process.returncode == 0, f"{way} through {kind.name} ended with {process.returncode}"
    result: dict[str, float] = json.loads(said)
    return result


async def _slowed(kind: Kind, source: Path, root: Path, step: int) -> float:
    """The piece of work has the last core, the transfer the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return float("nan")
    await asyncio.to_thread(_renew, source)
    alone = await asyncio.to_thread(_worked, cores[-1], 2.0, None)
    with _kept_off(cores[-1], cores):
        transfer = asyncio.create_task(_transfer(kind, "put", source, root / "target", step))
        beside = await asyncio.to_thread(_worked, cores[-1], 60.0, transfer)
        await transfer
    return median(beside) / median(alone)


@contextlib.contextmanager
def _kept_off(core: int, cores: list[int]) -> Iterator[None]:
    """This process, those that it has started and those that it starts have the other cores, with all their threads."""
    _confine([each for each in cores if each != core])
    try:
        yield
    finally:
        _confine(cores)


def _confine(cores: list[int]) -> None:
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread.id, cores)


def _worked(core: int, seconds: float, beside: asyncio.Task[dict[str, float]] | None) -> list[float]:
    """Times of the piece of work on this core, for so long, or until what goes on beside it has ended."""
    os.sched_setaffinity(0, {core})  # of this thread only
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and not (beside and beside.done())):
        began, value = time.perf_counter(), 0
        for number in range(WORK):
            value = (value * 31 + number) & 0xFFFFFFFF
        times.append(time.perf_counter() - began)
    return times

"""What Relay costs a training: its SFT, submitted and run by an agent, compared with the bare TRL script as a process.

(a) Wall time, as ratios of interleaved pairs with an interval: of the training loop alone (from the first logged step
to the last, so that start-up cannot hide it) and of the whole (from submit to the published result; from process start
to exit). Both train the same small model on the same rows with the same options, on half of the cores (threads that
wait for each other on a core that another program has just taken would hide everything), and save once, at the end.

(b) CPU time of Relay's own processes while the loop runs (coordinator, its Postgres, agent, shim), read from /proc at
the first reported step and at the last. It is given per step, and as a share of one core, which is also the share of a
step's wall time. It grows with the events stored per second and not with the steps: this small model logs far more
often than a real one. The same processes without a run are given beside it.

The idle coordinator and agent exist while the bare script runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.report import Table, cores, interval
from benchmarks.workload import Workload, prepare
from relay.v1 import runs_pb2 as pb
from relayctl.client import submission
from relayctl.client.client import RelayClient
from relayctl.local.deployment import LocalCluster, start_local_cluster

LOG_EVERY = 10  #: steps
IDLE = 10.0  #: seconds
PARTS = ("coordinator", "Postgres", "agent", "shim")


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds of each of PARTS up to a moment at which so many steps were done."""

    step: int
    time: float
    cpu: Mapping[str, float]


Window = tuple[Reading, Reading]


@dataclass(frozen=True, slots=True)
class Training:
    """Seconds of one training, and what stood beside it."""

    whole: float
    loop: float
    window: Window | None = None


def measure(quick: bool) -> Table:
    """Ratios of wall time, CPU by process."""
    pairs, steps = (2, 30) if quick else (10, 150)
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        trainings, idle = asyncio.run(_pairs(Path(folder), pairs, steps))
    loop = interval([ours.loop / bare.loop for ours, bare in trainings])
    whole = interval([ours.whole / bare.whole for ours, bare in trainings])
    step = median(bare.loop for _, bare in trainings) / (steps - LOG_EVERY) * 1000
    rows = [("wall time of the loop, Relay / bare", f"{loop}"), ("wall time of the whole, Relay / bare", f"{whole}")]
    notes = [f"The interval is a {loop.confidence:.0%} one of the median. A bare step takes {step:.1f} ms."]
    windows = [ours.window for ours, _ in trainings if ours.window is not None]
    title = f"SFT under Relay and bare, {pairs} pairs of {steps} steps"
    return Table(title, ("", "median [interval]"), [*rows, *_cpu_rows(windows, idle)], notes)


def _cpu_rows(windows: Sequence[Window], idle: Window) -> list[tuple[str, str]]:
    steps = sum(last.step - first.step for first, last in windows)
    return [
        _row("CPU of Relay", PARTS, windows, steps),
        *(_row(f"  {part}", [part], windows, steps) for part in PARTS),
        _row("CPU of Relay, no run there", PARTS, [idle]),
    ]


def _row(name: str, parts: Sequence[str], windows: Sequence[Window], steps: int = 0) -> tuple[str, str]:
    spent = sum(last.cpu[part] - first.cpu[part] for first, last in windows for part in parts)
    share = f"{spent / sum(last.time - first.time for first, last in windows):.2%} of one core"
    return name, f"{spent / steps * 1000:.3f} ms a step, {share}" if steps else share


async def _pairs(folder: Path, pairs: int, steps: int) -> tuple[list[tuple[Training, Training]], Window]:
    """The trainings, and what stands beside no training."""
    threads = max(1, cores() // 2)
    work = await asyncio.to_thread(
        prepare, folder / "in", "small", steps=steps, log_every=LOG_EVERY, save_every=steps, threads=threads
    )
    async with (
        start_local_cluster(folder, ["a"]) as cluster,
        RelayClient.connect(cluster.coordinator.address) as client,
    ):
        found = []
        idle = [await asyncio.to_thread(_reading, cluster, 0)]
        await asyncio.sleep(IDLE)
        idle.append(await asyncio.to_thread(_reading, cluster, 0))
        for number in range(pairs):
            first = await _bare(work, folder / f"bare-{number}") if number % 2 else None
            ours = await _ours(work, cluster, client)
            found.append((ours, first or await _bare(work, folder / f"bare-{number}")))
        return found, (idle[0], idle[1])


async def _bare(work: Workload, folder: Path) -> Training:
    await asyncio.to_thread(folder.mkdir)
    environment = {**os.environ, **work.spec["env"], "CUDA_VISIBLE_DEVICES": ""}
    began = time.time()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.bare_sft", str(work.run_file), str(folder)),
        cwd=work.folder,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    ended = time.time()
    if process.returncode:
        raise RuntimeError(f"the bare script ended with {process.returncode}:\n{errors.decode()[-2000:]}")
    logged = json.loads(await asyncio.to_thread((folder / "logged.json").read_text))
    return Training(whole=ended - began, loop=logged[-1][1] - logged[0][1])


async def _ours(work: Workload, cluster: LocalCluster, client: RelayClient) -> Training:
    began = time.time()
    submitted = await submission.submit_run(client, await submission.prepare_run(work.run_file))
    name, readings = submitted.run.name, list[Reading]()
    async for update in client.watch_run(name):
        if update.HasField("progress") and update.progress.step > (readings[-1].step if readings else 0):
            readings.append(await asyncio.to_thread(_reading, cluster, update.progress.step))
    ended = time.time()
    run = await client.get_run(name)
    if run.state != pb.Run.SUCCEEDED:
        raise RuntimeError(f"{name} did not succeed: {run.error.message}")
    times = sorted(moment for series in await client.read_metrics(name, ["train_loss"]) for moment in series.times)
    return Training(whole=ended - began, loop=times[-1] - times[0], window=(readings[0], readings[-1]))


def _reading(cluster: LocalCluster, step: int) -> Reading:
    """Now. A shim is a child of its agent; a trainer, the shim's child, is not counted."""
    [host] = cluster.hosts.values()
    assert host.daemon is not None and cluster.coordinator.daemon is not None
    agent = psutil.Process(host.daemon.process.pid)
    cpu = {
        "coordinator": _own(psutil.Process(cluster.coordinator.daemon.process.pid)),
        "Postgres": _postgres(cluster.coordinator.folder),
        "agent": _own(agent),
        "shim": sum(_own(shim) for shim in agent.children()),
    }
    return Reading(step, time.monotonic(), cpu)


def _own(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # ended between being listed and being read
        return 0.0
    return float(times.user + times.system)


def _postgres(folder: Path) -> float:
    """The server, its living processes, and those that it has reaped."""
    [record] = folder.rglob("postmaster.pid")
    server = psutil.Process(int(record.read_text().split()[0]))
    times = server.cpu_times()
    buried = times.children_user + times.children_system
    return _own(server) + float(buried) + sum(_own(child) for child in server.children(recursive=True))

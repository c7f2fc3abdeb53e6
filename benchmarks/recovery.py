"""A host is lost, or a host leaves: how soon the run resumes elsewhere, and where the time goes.

Three hosts with default timing (a lease lives 30 s); SFT of a tiny model that is uploaded with the run and saves every
hundred steps. Some time after a checkpoint has left the host, the host vanishes (SIGKILL to agent, shim and trainer at
once). The same time after a checkpoint of the next attempt, that attempt's host leaves (SIGTERM to its agent). The same
stages of the first attempt, which nothing preceded, are the baseline: what a start costs on this machine, most of it
for the libraries.

Moments are the database's (lapse, end, grant, first write), the agent log's (process started) and the trainer's (its
first progress, its first step), all by one machine's clock.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.report import Table, cores, seconds, spread
from benchmarks.workload import Workload, prepare
from relay.v1 import runs_pb2 as pb
from relayctl.client import submission
from relayctl.client.client import RelayClient, shorten_name
from relayctl.local.deployment import LocalCluster, LocalHost, start_local_cluster
from relayctl.local.recovery import Recovery, measure_recovery

SAVE_EVERY = 100
PAST = 40  #: steps past a checkpoint at which a host goes
STAGES = ("noticed", "granted", "prepared", "process", "loaded", "first step", "whole", "new ground", "twice")
_LABELS = {
    "noticed": "timeout noticed; saved and released",
    "granted": "→ granted to a host",
    "prepared": "→ inputs and checkpoint fetched and verified",
    "process": "→ trainer's process started",
    "loaded": "→ libraries and model loaded",
    "first step": "→ first step done",
    "whole": "in all, to the first step",
    "new ground": "in all, to the first step beyond the old maximum",
    "twice": "steps trained twice",
}

Stages = dict[str, float]  #: seconds by stage; what an attempt does not have is NaN


@dataclass(frozen=True, slots=True)
class Disturbed:
    """The stages of one run's three attempts."""

    fresh: Stages
    vanished: Stages
    left: Stages


def measure(quick: bool) -> Table:
    """Seconds by stage, for a first start, a vanished host and a leaving one."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        runs = asyncio.run(_disturbed(Path(folder), 1 if quick else 3))
    rows = [
        (_LABELS[stage], *(_cell(stage, [getattr(run, kind)[stage] for run in runs]) for kind in Disturbed.__slots__))
        for stage in STAGES
    ]
    title = f"To the next attempt's first step, {len(runs)} of each: median (range)"
    return Table(title, ("", "first start", "host vanished", "host left"), rows)


def _cell(stage: str, values: Sequence[float]) -> str:
    if any(map(math.isnan, values)):
        return ""
    return "/".join(f"{value:.0f}" for value in values) if stage == "twice" else spread(values)


async def _disturbed(folder: Path, times: int) -> list[Disturbed]:
    work = await asyncio.to_thread(
        prepare,
        *(folder / "in", "tiny"),
        steps=1_000_000,
        log_every=1,
        save_every=SAVE_EVERY,
        threads=max(1, cores() // 2),
    )
    return [await _one(folder / str(number), work) for number in range(times)]


async def _one(folder: Path, work: Workload) -> Disturbed:
    """A cluster of its own for each run: hosts with nothing cached."""
    async with (
        start_local_cluster(folder, ["a", "b", "c"]) as cluster,
        RelayClient.connect(cluster.coordinator.address) as client,
    ):
        submitted = time.time()
        run = (await submission.submit_run(client, await submission.prepare_run(work.run_file))).run.name
        try:
            lost, left = await _disturb(cluster, client, run)
            return await _stages(cluster, client, run, (submitted, lost, left))
        finally:
            await asyncio.gather(*(host.vanish() for host in cluster.hosts.values()))


async def _disturb(cluster: LocalCluster, client: RelayClient, run: str) -> tuple[float, float]:
    """Takes the first two hosts away, and returns when, once the third has saved."""
    await _past_a_checkpoint(client, run, 1)
    lost = time.time()
    await (await _holder(cluster, client, run)).vanish()
    await _past_a_checkpoint(client, run, 2)
    leaver, left = await _holder(cluster, client, run), time.time()
    await leaver.leave()
    await _past_a_checkpoint(client, run, 3)
    return lost, left


async def _past_a_checkpoint(client: RelayClient, run: str, attempt: int) -> None:
    """Until this attempt has a checkpoint off its host and is PAST steps further."""
    copied = math.inf
    async for update in client.watch_run(run):
        if update.HasField("progress") and update.progress.step >= copied + PAST:
            return
        if update.HasField("event") and update.event.attempt == attempt and update.event.kind == pb.RunEvent.COPIED:
            copied = min(copied, float(str(update.event.details["step"])))
    raise RuntimeError(f"{run} ended in attempt {attempt}: {(await client.get_run(run)).error.message}")


async def _holder(cluster: LocalCluster, client: RelayClient, run: str) -> LocalHost:
    return _host(cluster, (await client.list_attempts(run))[-1])


def _host(cluster: LocalCluster, attempt: pb.Attempt) -> LocalHost:
    return cluster.hosts[shorten_name(attempt.places[0].agent)]


async def _stages(
    cluster: LocalCluster, client: RelayClient, run: str, moments: tuple[float, float, float]
) -> Disturbed:
    attempts = await client.list_attempts(run)
    series = await client.read_metrics(run, ["train_loss"], include_superseded=True)
    lapsed = await _lapse(client, run)
    noticed = (moments[0], lapsed, seconds(attempts[1].end_time))
    records = zip(attempts, [attempts[:1], attempts[:2], attempts[1:]], moments, noticed, strict=True)
    found = []
    for attempt, pair, began, seen in records:
        loading = await asyncio.to_thread(_until_loaded, _host(cluster, attempt), run, attempt, began, seen)
        found.append(_with_steps(loading, measure_recovery(series, pair, began)))
    return Disturbed(found[0] | dict.fromkeys(("noticed", "new ground", "twice"), math.nan), *found[1:])


def _with_steps(loading: Stages, found: Recovery) -> Stages:
    return loading | {
        "first step": found.first_step - sum(loading.values()),
        "whole": found.first_step,
        "new ground": found.beyond,
        "twice": float(found.twice),
    }


async def _lapse(client: RelayClient, run: str) -> float:
    async for update in client.watch_run(run):
        if update.HasField("event") and update.event.kind == pb.RunEvent.LAPSED:
            return seconds(update.event.time)
    raise RuntimeError(f"{run} never lapsed")


def _until_loaded(host: LocalHost, run: str, attempt: pb.Attempt, began: float, noticed: float) -> Stages:
    granted, prepared = seconds(attempt.grant_time), seconds(attempt.start_time)
    process, loaded = _process_started(host, attempt), _first_progress(host, run, attempt)
    return {
        "noticed": noticed - began,
        "granted": granted - noticed,
        "prepared": prepared - granted,
        "process": process - prepared,
        "loaded": loaded - process,
    }


def _process_started(host: LocalHost, attempt: pb.Attempt) -> float:
    """As the agent logged it."""
    assert host.daemon is not None
    lease = attempt.name.rpartition("/")[2]
    found = re.search(rf"^(\S+) .*: trainer started .*lease={lease}\b", host.daemon.log.read_text(), re.M)
    assert found is not None
    return datetime.fromisoformat(found.group(1)).timestamp()


def _first_progress(host: LocalHost, run: str, attempt: pb.Attempt) -> float:
    """A trainer says where it stands before its first step."""
    [path] = (host.root / run / "attempts").glob(f"{attempt.number}-*/events.jsonl")
    lines = map(json.loads, path.read_text().splitlines())
    first: str = next(line["time"] for line in lines if line["type"] == "progress")
    return datetime.fromisoformat(first).timestamp()

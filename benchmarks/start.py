"""From submit to the trainer's process, for runs that are submitted one after the other to an idle host.

The program is a shell that writes its own clock as an event, so no interpreter's start is counted, and it reports its
first moment itself. The floor is the same program started directly by this process; the two take turns. The run's
record, whose clock is this machine's too, gives the parts: the grant, and the attempt's first write (inputs fetched,
checkpoint chosen). An agent always keeps a spare shim ready; `shim` measures its worth.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Table, p99, seconds
from relayctl.client.client import RelayClient
from relayctl.local.deployment import start_local_cluster

METRIC = "started"
SCRIPT = f"""now=$(date +%s.%N)
echo '{{"type": "metric", "step": 1, "time": '$now', "values": {{"{METRIC}": '$now'}}}}' >> "$RELAY_EVENTS"
"""
COMMAND = ["sh", "-c", SCRIPT]
SPEC = {"version": "relay/v1", "method": "command", "command": COMMAND, "resources": {"gpus_per_node": 0}}


@dataclass(frozen=True, slots=True)
class Start:
    """Milliseconds of one submit, each from the stage before."""

    granted: float
    prepared: float
    process: float
    direct: float  #: the same process without Relay

    @property
    def whole(self) -> float:
        return self.granted + self.prepared + self.process


def measure(quick: bool) -> Table:
    """Milliseconds, stage by stage."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        starts = asyncio.run(_starts(5 if quick else 100, Path(folder)))
    floor = statistics.median(start.direct for start in starts)
    rows = [
        _row("submit → process started", [start.whole for start in starts], floor),
        _row("  submit → granted", [start.granted for start in starts], floor),
        _row("  → inputs and checkpoint chosen", [start.prepared for start in starts], floor),
        _row("  → process started", [start.process for start in starts], floor),
        _row("started directly", [start.direct for start in starts], floor),
    ]
    return Table(f"Submit to start, {len(starts)} runs one by one", ("", "p50", "p99", "p50 / direct"), rows)


def _row(name: str, times: Sequence[float], floor: float) -> tuple[str, ...]:
    middle = statistics.median(times)
    return name, f"{middle:.1f} ms", f"{p99(times):.1f} ms", f"{middle / floor:.1f}"


async def _starts(count: int, folder: Path) -> list[Start]:
    async with (
        start_local_cluster(folder, ["a"]) as cluster,
        RelayClient.connect(cluster.coordinator.address) as client,
    ):
        await _start(client, folder / "warm.jsonl")  # connections, prepared statements, the first spare
        return [await _start(client, folder / f"direct-{number}.jsonl") for number in range(count)]


async def _start(client: RelayClient, events: Path) -> Start:
    direct = await _directly(events)
    submitted = time.time()
    run = (await client.create_run(SPEC)).run.name
    async for _ in client.watch_run(run):
        pass
    [attempt] = await client.list_attempts(run)
    [series] = await client.read_metrics(run, [METRIC])
    granted, prepared, process = seconds(attempt.grant_time), seconds(attempt.start_time), series.values[0]
    return Start(
        granted=(granted - submitted) * 1000,
        prepared=(prepared - granted) * 1000,
        process=(process - prepared) * 1000,
        direct=direct,
    )


async def _directly(events: Path) -> float:
    began = time.time()
    process = await asyncio.create_subprocess_exec(*COMMAND, env={"RELAY_EVENTS": str(events), "PATH": "/usr/bin:/bin"})
    await process.wait()
    written = json.loads(await asyncio.to_thread(events.read_text))
    return (float(written["values"][METRIC]) - began) * 1000

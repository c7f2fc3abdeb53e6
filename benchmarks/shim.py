"""How long a trainer waits for its shim: from the job's start until the trainer's process exists and the agent knows
it.

A cold shim starts an interpreter; a spare one (an agent always has one ready) forks an interpreter that waits. Both are
compared with starting the same process, `/bin/true`, directly. The three take turns.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.shim_client.shims import Job, Shim, SpareShim, prepare_runtime_dir
from benchmarks.report import Table, p99

Start = Callable[[Job], Awaitable[Shim]]


def measure(quick: bool) -> Table:
    """Milliseconds of each way."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as root:
        times = asyncio.run(_taking_turns(5 if quick else 100, Path(root)))
    floor = statistics.median(times["direct"])
    rows = [
        (name, f"{statistics.median(took):.1f} ms", f"{p99(took):.1f} ms", f"{statistics.median(took) / floor:.1f}")
        for name, took in times.items()
    ]
    title = f"Starting a process under a shim, {len(times['direct'])} of each"
    return Table(title, ("", "p50", "p99", "p50 / direct"), rows)


async def _taking_turns(starts: int, root: Path) -> dict[str, list[float]]:
    runtime_dir = root / "run"
    prepare_runtime_dir(runtime_dir)
    times: dict[str, list[float]] = {"direct": [], "spare": [], "cold": []}
    async with SpareShim(runtime_dir) as spare:
        for number in range(starts):
            times["direct"].append(await _direct())
            await spare.ready()
            times["spare"].append(await _shimmed(spare.start, root / f"spare-{number}"))
            await spare.ready()  # the next spare is not to start beside the cold one
            times["cold"].append(await _shimmed(lambda job: Shim.start(job, runtime_dir), root / f"cold-{number}"))
    return times


async def _direct() -> float:
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec("/bin/true")
    took = (time.perf_counter() - began) * 1000
    await process.wait()
    return took


async def _shimmed(start: Start, folder: Path) -> float:
    """What was started is ended and forgotten before the next."""
    await asyncio.to_thread(folder.mkdir)
    began = time.perf_counter()
    shim = await start(Job(lease=folder.name, argv=("/bin/true",), cwd=folder, env={}, folder=folder))
    took = (time.perf_counter() - began) * 1000
    assert (await shim.wait()).code == 0
    await shim.forget()
    return took

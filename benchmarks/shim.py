"""How long a trainer waits for its shim: job handed over → the trainer's process exists and the agent knows.

    python -m benchmarks.shim [--starts 50]

Cold starts an interpreter for the shim; spare forks from one that waits. The trainer is `/bin/true`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.shims import Job, Shim, SpareShim, prepare_runtime_dir

Start = Callable[[Job], Awaitable[Shim]]


async def one(start: Start, folder: Path) -> float:
    """Milliseconds of one start; what was started is ended and forgotten before the next."""
    await asyncio.to_thread(folder.mkdir)
    began = time.perf_counter()
    shim = await start(Job(lease=folder.name, argv=("/bin/true",), cwd=folder, env={}, folder=folder))
    took = (time.perf_counter() - began) * 1000
    assert (await shim.wait()).code == 0
    await shim.forget()
    return took


def report(name: str, times: list[float]) -> None:
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
    print(f"{name:6} p50 {statistics.median(times):6.1f} ms   p99 {p99:6.1f} ms   n={len(times)}")


async def measure(starts: int, root: Path) -> None:
    runtime_dir = root / "run"
    prepare_runtime_dir(runtime_dir)
    report("cold", [await one(lambda job: Shim.start(job, runtime_dir), root / f"cold-{n}") for n in range(starts)])
    async with SpareShim(runtime_dir) as spare:
        spares = []
        for n in range(starts):
            await spare.ready()
            spares.append(await one(spare.start, root / f"spare-{n}"))
        report("spare", spares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--starts", type=int, default=50)
    starts = parser.parse_args().starts
    with tempfile.TemporaryDirectory() as root:
        asyncio.run(measure(starts, Path(root)))


if __name__ == "__main__":
    main()

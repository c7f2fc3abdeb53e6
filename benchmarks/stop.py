"""Policy `stop` to the letter: how long before its lease is over the trainer of a host without a heartbeat is dead
(S3).

A hundred lapses, a quarter each: the agent frozen; the agent gone; the agent frozen while sixteen busy processes
compete with the shims in sessions of their own, once at the lowest nice value, and once where a shim may not have the
real-time priority that it takes for its deadline. Leases last three seconds, in which the shim begins to kill 0.86 s
before the end. The trainer ignores SIGTERM and has grandchildren in sessions of their own. The margin is the time from
the moment when the kernel reports the last of them dead to the moment when the place expires by the database's clock;
only then can the run be granted to the other host. A negative margin would be a trainer at work beside its successor's
lease.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median

from benchmarks.lapses import Lapse, Scene, Situation, witnessing
from benchmarks.report import Table, p99
from relay.timing import TEST
from relayctl.client.client import RelayClient
from relayctl.local.deployment import LocalCoordinator, LocalHost

TOGETHER = 2  #: runs that lapse with one host
SLOTS = 8  #: of a host: enough that the runs before never keep the next ones from it
FIGURES: Mapping[str, Callable[[Lapse], float]] = {
    "margin left, dead → lease over": lambda lapse: lapse.margin,
    "dead → granted elsewhere": lambda lapse: lapse.granted - lapse.dead,
    "deadline → shim begins to kill": lambda lapse: lapse.began - lapse.trusted,
    "begins to kill → all dead": lambda lapse: lapse.dead - lapse.began,
}


def measure(quick: bool) -> Table:
    """Seconds, by situation."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        found = asyncio.run(_lapses(Path(folder), 1 if quick else 13))
    count = sum(map(len, found.values()))
    rows = [
        (situation.value if number == 0 else "", name, *_figures([figure(lapse) for lapse in lapses]))
        for situation, lapses in found.items()
        for number, (name, figure) in enumerate(FIGURES.items())
    ]
    columns = ("", "ms", "min", "p50", "p99", "max")
    allowed = f"Allowed: {TEST.margin * 1000:.0f} ms to begin, {TEST.kill * 1000:.0f} ms to kill."
    late = sum(lapse.margin < 0 for lapses in found.values() for lapse in lapses)
    return Table(f"{count} lapses under `stop`", columns, rows, [allowed, f"Margins below zero: {late}."])


def _figures(values: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{value * 1000:.1f}" for value in (min(values), median(values), p99(values), max(values)))


async def _lapses(folder: Path, rounds: int) -> dict[Situation, list[Lapse]]:
    """All of them in one deployment; within a heartbeat hosts stop responding at random."""
    coordinator, hosts, random = LocalCoordinator(folder / "coordinator", timing="test"), [], Random(0)
    found: dict[Situation, list[Lapse]] = {situation: [] for situation in Situation}
    try:
        address = await coordinator.start()
        for name in ("victim", "heir"):
            hosts.append(LocalHost(name, folder / name, address, ("--slots", str(SLOTS))))
            await hosts[-1].start()
        async with RelayClient.connect(address) as client, witnessing(folder / "witness") as witness:
            url = (coordinator.folder / "database-url").read_text().strip()
            scene = Scene(client, url, hosts[0], witness)
            for situation in [each for each in Situation for _ in range(rounds)]:
                after = random.uniform(0.0, 3 * TEST.heartbeat)
                found[situation] += await scene.lapses(situation, TOGETHER, after=after)
            await asyncio.gather(*(host.vanish() for host in hosts))
    finally:
        await asyncio.gather(*(host.vanish() for host in hosts))
        await coordinator.stop()
    return found

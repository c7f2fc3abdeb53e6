"""Simulates one seed: faults, then calm, then the final checks."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from relay.timing import TEST
from tests.simulation.chaos import Chaos
from tests.simulation.closing import all_over, close_the_books, settled
from tests.simulation.faults import Fault, schedule
from tests.simulation.loop import Stalled
from tests.simulation.world import World

FAULTS_UNTIL = 5 * TEST.ttl  #: seconds; then everything is repaired
RECONNECTED = 15.0  #: seconds later every agent is connected again, what it was just trying included
PATIENCE = 600.0  #: seconds after that within which every run has ended
MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class Verdict:
    """What came of a seed."""

    seed: int
    faults: list[Fault] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    trace: str = ""
    seconds: float = 0.0  #: of virtual time
    commits: int = 0
    attempts: int = 0

    @property
    def properties(self) -> list[str]:
        """Names of what was violated."""
        return sorted({text.partition(":")[0] for text in self.violations})


def simulate(seed: int, kinds: Sequence[str] = (), patience: float = PATIENCE) -> Verdict:
    """Runs one seed to its end, with faults of all kinds or of these. Disks are folders in memory where that can be."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="relay-simulation-", dir=place))
    try:
        faults = schedule(Random(f"faults {seed}"), TEST.ttl, FAULTS_UNTIL, kinds)
        return _simulate(seed, faults, folder, patience)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _simulate(seed: int, faults: list[Fault], folder: Path, patience: float) -> Verdict:
    world = World(seed, folder)
    verdict = Verdict(seed, faults)
    try:
        life = live(world, Chaos(world), faults, patience)
        world.loop.run_until_complete(world.loop.create_task(life, context=Context()))
    except Stalled:
        world.report("L3", "nothing happens any more")
    finally:
        verdict.violations = [*world.violations, *world.truth.wrong, *world.loop.failures]
        verdict.trace, verdict.seconds, verdict.commits = world.trace, world.loop.time(), world.commits
        verdict.attempts = len(world.storage.rows("leases"))
        world.close()
    return verdict


def last(faults: Sequence[Fault]) -> float:
    """When the last fault comes that something is left for, once every run is over."""
    return max(
        (fault.at + fault.lasts for fault in faults if fault.kind in ("requeue", "restored", "failover")), default=0.0
    )


async def live(world: World, chaos: Chaos, faults: Sequence[Fault], patience: float = PATIENCE) -> None:
    """A world's whole life."""
    for fault in faults:
        chaos.plan(fault)
    world.start()
    while world.loop.time() < FAULTS_UNTIL + 1 and not (all_over(world) and world.loop.time() > last(faults)):
        await asyncio.sleep(0.5)
    chaos.repair_everything()
    await settled(world, RECONNECTED, patience)
    close_the_books(world)

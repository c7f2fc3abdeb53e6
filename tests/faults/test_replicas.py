"""Coordinators that come and go: nothing happens to anybody's training (F5, F6)."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Watched

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]
TTL = 3.0  # of the test profile


async def runs_of(fleet: Fleet, hosts: int, steps: int) -> list[Watched]:
    """A run on each of so many hosts, all with their first checkpoint."""
    await asyncio.gather(*(fleet.host(f"h{number}") for number in range(hosts)))
    names = [f"r{number}" for number in range(hosts)]
    runs = await asyncio.gather(*(fleet.submit_gated(steps, 2, name) for name in names))
    await fleet.conductor.allow(2)
    await asyncio.gather(*(run.checkpoint(2) for run in runs))
    return runs


async def have_succeeded(fleet: Fleet, runs: list[Watched], steps: int) -> None:
    """Every run at its first attempt, each step done once."""
    for run in await asyncio.gather(*(run.ended() for run in runs)):
        assert run.state == pb.Run.SUCCEEDED and (run.attempts, run.failures, run.faults) == (1, 0, 0)
    assert len(fleet.conductor.trainers) == len(runs)
    await asyncio.gather(*(run.has_one_curve(steps) for run in runs))


async def test_a_rolling_restart_changes_no_attempt(patient_fleet: Fleet) -> None:
    """F5: each replica is ended and started again, in order and by force; the quickest stream moves in a second."""
    runs = await runs_of(patient_fleet, hosts=2, steps=10)
    first, second = patient_fleet.deployment.replicas
    for step, (replica, end) in enumerate(
        [(first, first.stop), (second, second.stop), (first, first.kill), (second, second.kill)], start=3
    ):
        await end()
        await patient_fleet.conductor.allow(step)
        await replica.start()
    for step in (7, 10):
        await patient_fleet.conductor.allow(step)
    await have_succeeded(patient_fleet, runs, 10)
    assert min(moves(patient_fleet)) < 1


def moves(fleet: Fleet) -> list[float]:
    """Seconds that each session needed to find another replica, by the agents' logs."""
    found, broken = [], None
    for host in fleet.hosts.values():
        for line in (host.folder / "agent.log").read_text().splitlines():
            if not (said := re.match(r"(\S+) \w+ agent.session: session (broken|opened) ", line)):
                continue
            time = datetime.fromisoformat(said[1]).timestamp()
            if said[2] == "opened" and broken is not None:
                found.append(time - broken)
            broken = time if said[2] == "broken" else None
    return found


async def test_all_coordinators_away_for_two_ttls_lapses_nobody(fleet: Fleet) -> None:
    """F6: several agents, all silent at once through no fault of theirs: nobody loses a lease when they are back."""
    runs = await runs_of(fleet, hosts=3, steps=10)
    await asyncio.gather(*(replica.kill() for replica in fleet.deployment.replicas))
    asyncio.get_running_loop().call_later(2 * TTL, asyncio.create_task, fleet.conductor.allow(8))
    await fleet.conductor.until(lambda me: len({trainer.run for trainer, step in me.steps if step == 8}) == 3)
    await asyncio.gather(*(replica.start() for replica in fleet.deployment.replicas))
    await fleet.conductor.allow(10)
    await have_succeeded(fleet, runs, 10)

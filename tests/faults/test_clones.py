"""One identity twice: a copied machine image, or a host that came back while its double worked (F21)."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid

import pytest

from relay.v1 import runs_pb2 as pb
from relayctl.local.deployment import LocalHost
from tests.end_to_end.fleet import Fleet, Kind

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def mounts() -> bool:
    """Whether a mount namespace can be had here."""
    made = subprocess.run(["unshare", "--mount", "mount", "--bind", BOOT_ID, BOOT_ID], capture_output=True, check=False)
    return made.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.rotating(1),
    pytest.mark.skipif(not mounts(), reason="another boot id needs a mount namespace, and so root on Linux"),
]


def clone(fleet: Fleet, name: str) -> LocalHost:
    """A host of that name with a disk of its own, on which the kernel gives its boot another id."""
    folder = fleet.folder / "clone"
    folder.mkdir()
    other = folder / "boot_id"
    other.write_text(f"{uuid.uuid4()}\n")
    enter = ("unshare", "--mount", "sh", "-c", f'mount --bind {other} {BOOT_ID} && exec "$@"', "sh")
    return fleet.new_host(name, within=enter, folder="clone")


async def test_a_clone_is_refused_while_the_first_is_alive(fleet: Fleet) -> None:
    """F21: each attempt is refused; nothing happens to the first, and once that is gone the name is free."""
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=2)
    await fleet.conductor.allow(3)
    await run.checkpoint(2)
    second = clone(fleet, "a")
    refused = await second.launch()
    await refused.seen("another host beats as a")
    await fleet.conductor.allow(4)
    await run.checkpoint(4)
    assert len(fleet.conductor.trainers) == 1

    await first.vanish()
    await refused.seen("session opened")
    assert (await fleet.conductor.called(2)).resumed_from == 4
    await fleet.conductor.allow(6)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures) == (2, 0)
    await run.has_one_curve(6)


@pytest.mark.parametrize("policy", ["continue", "stop"])
async def test_the_newer_wins_over_one_that_is_silent(fleet: Fleet, policy: str) -> None:
    """F21, S3: the one that wakes is refused for good; under `stop` its trainer was dead before the next began."""
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=2, lifecycle={"on_disconnect": policy})
    await fleet.conductor.allow(3)
    await fleet.conductor.reached(3)
    await run.checkpoint(2)
    assert first.daemon is not None
    agent = first.daemon.process
    os.kill(agent.pid, signal.SIGSTOP)  # its shim and trainer go on
    await clone(fleet, "a").start()
    await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
    await fleet.conductor.called(2)
    os.kill(agent.pid, signal.SIGCONT)
    assert await agent.wait() != 0
    await fleet.conductor.allow(6)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures) == (2, 0)
    await run.has_one_curve(6)

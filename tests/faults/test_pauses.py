"""Holders that are paused for longer than their lease lasts, and wake up when it is another's (S2, S3, S5, F3, F4)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from relay.v1 import runs_pb2 as pb
from relayctl.local.deployment import LocalHost
from tests.end_to_end.conductor import Trainer
from tests.end_to_end.fleet import Fleet, Kind, Watched
from tests.faults.zombie import refused_everywhere

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]
STEPS = 8


@contextlib.contextmanager
def agent_frozen(host: LocalHost) -> Iterator[None]:
    """The agent alone stands still; its shim and its trainer do not."""
    assert host.daemon is not None
    host.daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.daemon.process.send_signal(signal.SIGCONT)


async def training(fleet: Fleet, policy: str) -> tuple[LocalHost, Watched, Trainer]:
    """A host at step 3 of a run, whose checkpoint of step 2 is safe; and another host."""
    host = await fleet.host("a")
    run = await fleet.submit_gated(STEPS, save_every=2, lifecycle={"on_disconnect": policy})
    await fleet.conductor.allow(3)
    await fleet.conductor.reached(3)
    await run.checkpoint(2)
    await fleet.host("b")
    return host, run, await fleet.conductor.called(1)


async def taken_over(fleet: Fleet, run: Watched) -> Trainer:
    """Return the trainer of the other host, which resumes from what had left the first one and then waits."""
    await fleet.conductor.hold_trainers_after(3)
    await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
    second = await fleet.conductor.called(2)
    assert second.resumed_from == 2
    await fleet.conductor.reached(3, attempt=2)
    return second


async def ends_as_if_never_woken(fleet: Fleet, run: Watched) -> None:
    """One curve, and nothing of the first attempt beyond what the second began from."""
    lost, _ = await run.attempts()
    await refused_everywhere(fleet.proxy.address, lost.name)
    await fleet.conductor.allow(STEPS)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures) == (2, 0)
    assert [(c.attempt, c.step) for c in await run.checkpoints(superseded=True) if c.attempt == 1] == [(1, 2)]
    lost, _ = await run.attempts()
    assert lost.outcome == pb.Attempt.FAULTED and lost.kept_until_step == 2
    await run.has_one_curve(STEPS)


async def test_a_paused_agent_under_continue(fleet: Fleet) -> None:
    """F3: its trainer goes on and saves; when it wakes up it has lost the run, and what was saved meanwhile."""
    host, run, first = await training(fleet, "continue")
    with agent_frozen(host):
        await fleet.conductor.allow(5)
        await fleet.conductor.reached(5, attempt=1)
        second = await taken_over(fleet, run)
        assert first.ended > second.began  # nobody stopped it: silence is not death
        assert list(host.root.rglob("step_00000004"))  # which nobody may resume from
    await fleet.conductor.ended(first)
    await ends_as_if_never_woken(fleet, run)


async def test_a_paused_agent_under_stop(fleet: Fleet) -> None:
    """F3, S3: its shim has killed the trainer before the other one begins."""
    host, run, first = await training(fleet, "stop")
    with agent_frozen(host):
        second = await taken_over(fleet, run)
        assert first.ended < second.began
    await ends_as_if_never_woken(fleet, run)


@pytest.mark.parametrize("policy", ["continue", "stop"])
async def test_a_paused_host(fleet: Fleet, policy: str) -> None:
    """F4: all of it stops in the middle of work, and goes on in the middle of it when it is another's."""
    host, run, first = await training(fleet, policy)
    with fleet.frozen(host):
        await fleet.conductor.allow(5)  # waits in the frozen trainer's socket
        await taken_over(fleet, run)
        await fleet.conductor.allow(5)
    await fleet.conductor.ended(first)
    await ends_as_if_never_woken(fleet, run)


async def test_a_paused_host_whose_run_is_over(fleet: Fleet) -> None:
    """F4: it wakes up when the run has ended elsewhere; its own end of it is refused too."""
    host, run, first = await training(fleet, "continue")
    with fleet.frozen(host):
        await taken_over(fleet, run)
        await fleet.conductor.allow(STEPS)
        assert (await run.ended()).state == pb.Run.SUCCEEDED
    await fleet.conductor.ended(first)
    await ends_as_if_never_woken(fleet, run)

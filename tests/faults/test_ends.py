"""Trainers and agents that die: the cause is reported at once, nothing is lost, the run goes on (F1, F2)."""

from __future__ import annotations

import os
import signal
import time

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]


async def test_a_trainer_that_dies_is_retried_from_the_head(fleet: Fleet) -> None:
    """F1: killed, then failing by itself. Each cause is reported within a second, by the quicker of the two."""
    await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=2)
    await fleet.conductor.allow(3)
    await fleet.conductor.reached(3)
    await run.checkpoint(2)
    killed = time.time()
    os.kill((await fleet.conductor.called(1)).pid, signal.SIGKILL)
    first = await run.until(lambda event: event.kind == Kind.ENDED)
    assert "SIGKILL" in first.text

    assert (await fleet.conductor.called(2)).resumed_from == 2
    await fleet.conductor.allow(4)
    await run.checkpoint(4)
    failed = time.time()
    await fleet.conductor.fail(2)
    second = await run.until(lambda event: event.kind == Kind.ENDED and event.attempt == 2)
    assert "RuntimeError: step 5 went wrong" in second.text
    assert min(first.time.ToDatetime().timestamp() - killed, second.time.ToDatetime().timestamp() - failed) < 1

    assert (await fleet.conductor.called(3)).resumed_from == 4
    await fleet.conductor.allow(6)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures) == (3, 2)
    await run.has_one_curve(6)


async def test_a_run_that_keeps_failing_fails_with_its_own_error(fleet: Fleet) -> None:
    """F1: the last words of its program, not something of ours."""
    await fleet.host("a")
    run = await fleet.submit_gated(steps=6, save_every=2, lifecycle={"max_attempts": 1})
    await fleet.conductor.fail(1)
    ended = await run.ended()
    assert ended.state == pb.Run.FAILED and ended.failures == 1
    assert "RuntimeError: step 1 went wrong" in ended.error.message


async def test_an_agent_that_stays_dead_is_replaced_by_another_host(fleet: Fleet) -> None:
    """F2, F3: its trainer goes on and counts no more; an agent that comes back too late ends it."""
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=8, save_every=2)
    await fleet.conductor.allow(3)
    await run.checkpoint(2)
    zombie = await fleet.conductor.called(1)
    await fleet.host("b")
    await first.kill_agent()
    assert (await fleet.conductor.called(2)).resumed_from == 2
    await fleet.conductor.allow(6)
    await fleet.conductor.reached(6, attempt=1)
    await run.checkpoint(6, attempt=2)
    await first.start()
    await fleet.conductor.ended(zombie)
    await fleet.conductor.allow(8)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures, ended.faults) == (2, 0, 0)
    await run.has_one_curve(8)

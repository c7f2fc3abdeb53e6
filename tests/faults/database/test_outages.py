"""Postgres is killed, restarted, and away for a while, under two replicas and a host that trains (F7).

Whatever is done to it, what was acknowledged is there afterwards, no attempt changes, and no replica is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from relay.v1 import agents_pb2, agents_pb2_grpc, runs_pb2, runs_pb2_grpc
from tests.end_to_end.fleet import Fleet
from tests.faults.database.clusters import Site
from tests.faults.database.expectations import expect_undisturbed, start_training

pytestmark = [pytest.mark.slow, pytest.mark.rotating(2, of="faults of the database")]
TTL = 3.0  # of the test profile
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_crash_loses_nothing(fleet: Fleet, site: Site) -> None:
    """SIGKILL at any moment of a busy time (S7)."""
    await fleet.host("a")
    run = await start_training(fleet, 3)
    for step in range(4, 8):
        await fleet.conductor.allow(step)
        await site.primary.crash()
        await fleet.conductor.reached(step)
        await site.primary.start()
    await run.checkpoint(6)
    await expect_undisturbed(fleet, run, 8)


async def test_a_smart_shutdown_that_has_to_be_fast(fleet: Fleet, site: Site) -> None:
    """A smart one takes no new connection and waits for those there are, which pools never end: they still serve."""
    await fleet.host("a")
    run = await start_training(fleet, 3)
    daemon = site.primary.daemon
    assert daemon is not None
    daemon.process.send_signal(signal.SIGTERM)
    await daemon.seen("received smart shutdown request")
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await site.primary.stop(signal.SIGINT)
    await site.primary.start()
    await expect_undisturbed(fleet, run, 8)


async def test_away_for_longer_than_two_leases(fleet: Fleet, site: Site) -> None:
    """Clients hear UNAVAILABLE and balancers NOT_SERVING, agents receive a Wait, and nothing lapses afterwards."""
    await fleet.host("a")
    run = await start_training(fleet, 3)
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(replica.address))
            for replica in fleet.deployment.replicas
        ]
        probes = [Probe(channel, f"probe-{number}") for number, channel in enumerate(channels)]
        assert [await probe.next_answer() for probe in probes] == ["welcome", "welcome"]
        await asyncio.gather(*(wait_for_status(channel, SERVING) for channel in channels))
        back = asyncio.get_running_loop().time() + 2.2 * TTL
        await site.primary.stop(signal.SIGINT)
        for channel, probe in zip(channels, probes, strict=True):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await runs_pb2_grpc.RunsStub(channel).GetRun(runs_pb2.GetRunRequest(name="runs/r"), timeout=90)
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
            assert await probe.next_answer() == "wait"
            await wait_for_status(channel, NOT_SERVING)
        await fleet.conductor.allow(7)
        await fleet.conductor.reached(7)
        asyncio.get_running_loop().call_at(back, asyncio.create_task, site.primary.start())
        await asyncio.gather(*(wait_for_status(channel, SERVING) for channel in channels))
        assert [await probe.next_answer() for probe in probes] == [
            "heartbeat_reply",
            "heartbeat_reply",
        ]  # the very sessions go on
    await expect_undisturbed(fleet, run, 8)


class Probe:
    """A session with one replica, of a host that takes no work."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        readiness = agents_pb2.Readiness(ready=False)
        hello = agents_pb2.Hello(agent=f"agents/{name}", instance_id=name, boot_id=name, readiness=readiness)
        self._call: Any = agents_pb2_grpc.AgentsStub(channel).Session()
        self._next = agents_pb2.SessionRequest(hello=hello)
        self._sent = 0

    async def next_answer(self) -> str:
        """What the next thing it says is answered with."""
        await self._call.write(self._next)
        while True:
            answer = await self._call.read()
            kind: str = answer.WhichOneof("message")
            if kind == "welcome" or getattr(answer, kind).heartbeat_sequence == self._sent > 0:
                break
        self._sent += 1
        heartbeat = agents_pb2.Heartbeat(sequence=self._sent, readiness=agents_pb2.Readiness(ready=False))
        self._next = agents_pb2.SessionRequest(heartbeat=heartbeat)
        return kind


async def wait_for_status(channel: grpc.aio.Channel, wanted: int) -> None:
    """Until this replica says so of its health."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its types leave out Watch
    call = stub.Watch(health_pb2.HealthCheckRequest())
    async for answer in call:
        if answer.status == wanted:
            call.cancel()
            return

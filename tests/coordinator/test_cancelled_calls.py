"""Callers that go away at any moment leave nothing behind: no broken connection in a pool, no mistake of ours (F10)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from grpc import aio

from relay.v1 import artifacts_pb2, fleet_pb2, runs_pb2
from relay.v1.artifacts_pb2_grpc import ArtifactsStub
from relay.v1.fleet_pb2_grpc import FleetStub
from relay.v1.runs_pb2_grpc import RunsStub
from tests.conftest import RunningCoordinator
from tests.proxy import Proxy

CALLS = 300
AT_ONCE = 25
LONGEST = 0.04  # seconds after which a call is given up at the latest
SPEC = Struct()
SPEC.update({"version": "relay/v1", "method": "command", "command": ["true"], "resources": {"gpus_per_node": 1}})
BACKOFF = [(f"grpc.{name}_reconnect_backoff_ms", 20) for name in ("initial", "min", "max")]


def calls(channel: aio.Channel, number: int) -> list[Callable[[], Any]]:
    """Every kind of call that users make, on a run of its own."""
    runs, artifacts, name = RunsStub(channel), ArtifactsStub(channel), f"runs/r{number % 40}"
    create = runs_pb2.CreateRunRequest(run_id=name[5:], spec=SPEC, request_id=f"q{number % 40}")
    return [
        lambda: runs.CreateRun(create),
        lambda: runs.CreateRun(create),
        lambda: runs.GetRun(runs_pb2.GetRunRequest(name=name)),
        lambda: runs.ListRuns(runs_pb2.ListRunsRequest()),
        lambda: runs.CancelRun(runs_pb2.CancelRunRequest(name=name)),
        lambda: runs.WatchRun(runs_pb2.WatchRunRequest(name=name)),
        lambda: runs.ReadMetrics(runs_pb2.ReadMetricsRequest(name=name)),
        lambda: FleetStub(channel).ListAgents(fleet_pb2.ListAgentsRequest()),
        lambda: artifacts.PutBlob(upload(number)),
        lambda: artifacts.StatBlobs(artifacts_pb2.StatBlobsRequest(digests=[digest(number)])),
        lambda: artifacts.GetBlob(artifacts_pb2.GetBlobRequest(digest=digest(number), verify=True)),
    ]


def digest(number: int) -> str:
    return f"sha256:{hashlib.sha256(bytes([number % 7]) * 500_000).hexdigest()}"


async def upload(number: int) -> AsyncIterator[artifacts_pb2.PutBlobRequest]:
    yield artifacts_pb2.PutBlobRequest(header=artifacts_pb2.PutBlobHeader(digest=digest(number), size=500_000))
    for _ in range(10):
        yield artifacts_pb2.PutBlobRequest(chunk=bytes([number % 7]) * 50_000)


async def given_up(call: Any, after: float) -> None:
    """Cancels a call after so many seconds, wherever it is then."""
    timer = asyncio.get_running_loop().call_later(after, call.cancel)
    try:
        if isinstance(call, aio.UnaryStreamCall):
            _ = [response async for response in call]
        else:
            await call
    except asyncio.CancelledError:
        pass
    except grpc.RpcError as refused:
        # gRPC's client says INTERNAL too ("Internal error from Core"), when the line breaks while it is writing.
        assert "coordinator's own" not in (refused.details() or ""), refused
    finally:
        timer.cancel()


async def many(work: Callable[[int], Awaitable[None]]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for number in range(CALLS):
            group.create_task(one(number))


async def all_is_well(channel: aio.Channel, log: pytest.LogCaptureFixture) -> None:
    """Calls of every kind are answered, as many at once as all connections there are can serve."""
    runs = RunsStub(channel)
    patiently: Any = {"timeout": 20, "wait_for_ready": True}  # its line may just have been cut
    await asyncio.gather(
        *(runs.ListRuns(runs_pb2.ListRunsRequest(), **patiently) for _ in range(16)),
        *(runs.CreateRun(runs_pb2.CreateRunRequest(run_id=f"n{i}", spec=SPEC), **patiently) for i in range(16)),
    )
    assert [record.getMessage() for record in log.records if record.levelno >= logging.ERROR] == []


async def test_calls_that_are_cancelled_at_any_moment(
    coordinator: RunningCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(5)

    async def work(number: int) -> None:
        await given_up(chance.choice(calls(coordinator.channel, number))(), chance.uniform(0, LONGEST))

    await many(work)
    await all_is_well(coordinator.channel, caplog)


async def test_lines_that_are_cut_at_any_moment(
    coordinator: RunningCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(6)
    async with Proxy([coordinator.address]) as proxy, aio.insecure_channel(proxy.address, options=BACKOFF) as channel:

        async def work(number: int) -> None:
            if number % 20 == 0:
                proxy.cut()
                proxy.heal()
            await given_up(chance.choice(calls(channel, number))(), 5 * LONGEST)

        await many(work)
        await all_is_well(channel, caplog)

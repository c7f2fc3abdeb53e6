"""Messages that come twice, late or in another order: idempotent, or refused (F17, S2, S9, S10)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from grpc import aio

from relay import errors
from relay.v1 import agents_pb2 as agents
from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet
from tests.faults.gateway import Call, gateway
from tests.history.record import recorded

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]

WRITES = ("StartAttempt", "RegisterCheckpoint", "AddCopy", "CompleteLease", "AppendEvents")
#: All that an agent's writes could change.
TABLES = (
    *("runs", "leases", "places", "taken_slots", "cursors", "metric_chunks", "log_chunks", "run_events"),
    *("checkpoints", "checkpoint_parts", "checkpoint_copies"),
)
MOVING = {"update_time", "expire_time"}  #: what heartbeats and bare reads of a run's row move


async def state(fleet: Fleet) -> dict[str, Any]:
    """What is stored, but for what moves by itself."""
    rows = await recorded(fleet.deployment.database_url)
    return {
        table: sorted(repr({name: value for name, value in row.items() if name not in MOVING}) for row in rows[table])
        for table in TABLES
    }


async def replay(address: str, calls: Sequence[Call], dice: random.Random) -> list[str]:
    """Sends them all twice in another order, many at once; the reasons of those that were refused."""
    again = [call for call in calls if call.method in WRITES] * 2
    dice.shuffle(again)
    async with aio.insecure_channel(address) as channel:
        answers = await asyncio.gather(*(send(channel, call) for call in again))
    return [reason for reason in answers if reason]


async def send(channel: aio.Channel, call: Call) -> str:
    """One message as a call of its own; why it was refused, empty when it was taken."""

    async def requests() -> Any:
        yield call.request

    method: aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(call.path)
    try:
        replies = [reply async for reply in method(requests())]
    except aio.AioRpcError as error:
        refusal = errors.from_rpc(error)
        assert refusal is not None, error
        return refusal.reason
    if call.method == "AppendEvents":
        refused = errors.from_status(agents.AppendEventsResponse.FromString(replies[0]).refused)
        return refused.reason if refused else ""
    return ""


async def test_an_agents_own_messages_replayed_change_nothing(fleet: Fleet) -> None:
    """F17: in the middle of an attempt they are idempotent, under the next one and after the end they are refused."""
    dice = random.Random(17)
    replica = fleet.deployment.replicas[0].address
    async with gateway(fleet.proxy.address) as line:
        first = await fleet.host("a", via=line.address)
        run = await fleet.submit_gated(steps=8, save_every=2)
        for step in (2, 4):
            await fleet.conductor.allow(step)
            await run.checkpoint(step)
        before = await state(fleet)
        assert await replay(replica, line.passed, dice) == []
        assert await state(fleet) == before

        old = list(line.passed)
        await fleet.host("b", via=line.address)
        await first.vanish()
        await fleet.conductor.called(2)
        await fleet.conductor.allow(6)
        await run.checkpoint(6)
        before = await state(fleet)
        assert set(await replay(replica, old, dice)) == {"LEASE_LOST"}
        assert await state(fleet) == before

        await fleet.conductor.allow(8)
        assert (await run.ended()).state == pb.Run.SUCCEEDED
        before = await state(fleet)
        assert set(await replay(replica, line.passed, dice)) == {"LEASE_LOST"}  # but for the report of the end
        assert await state(fleet) == before
        await run.has_one_curve(8)


async def test_every_request_twice_at_once_is_as_once(fleet: Fleet) -> None:
    """F17: two of each race for the run's row."""
    async with gateway(fleet.proxy.address) as line:
        line.doubling = True
        await fleet.host("a", via=line.address)
        run = await fleet.submit_gated(steps=6, save_every=2)
        for step in (2, 4, 6):
            await fleet.conductor.allow(step)
            await fleet.conductor.reached(step)
        ended = await run.ended()
        assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures, ended.faults) == (1, 0, 0)
        assert len(fleet.conductor.trainers) == 1 and fleet.conductor.steps_done_twice() == []
        await run.has_one_curve(6)


async def test_a_hello_that_arrives_late_takes_nothing_away(fleet: Fleet) -> None:
    """F17: its agent had given up on it, and has had another session since."""
    async with gateway(fleet.proxy.address) as line:
        line.drop_replies("Session")  # the first welcome, so there are two hellos
        host = await fleet.host("a", via=line.address)
        run = await fleet.submit_gated(steps=6, save_every=2)
        await fleet.conductor.allow(2)
        await run.checkpoint(2)
        hellos = [call for call in line.passed if is_hello(call)]
        assert len(hellos) == 2
        async with aio.insecure_channel(fleet.deployment.replicas[0].address) as channel:
            assert [await send(channel, hello) for hello in hellos] == ["SESSION_REPLACED"] * 2
        await fleet.conductor.allow(6)
        ended = await run.ended()
        assert ended.state == pb.Run.SUCCEEDED and (ended.attempts, ended.failures, ended.faults) == (1, 0, 0)
        assert len(fleet.conductor.trainers) == 1 and fleet.conductor.steps_done_twice() == []
        assert host.daemon is not None and host.daemon.process.returncode is None
        await run.has_one_curve(6)


def is_hello(call: Call) -> bool:
    return call.method == "Session" and agents.SessionRequest.FromString(call.request).WhichOneof("message") == "hello"

"""The client: what it tries again, what it never does, and streams that go on where they broke off."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from relay import errors
from relayctl.client.channel import CallFailed, CoordinatorUnreachable
from relayctl.client.client import RelayClient
from tests.relayctl.flaky import Faults, ScriptedRuns, connected, serving

Code = grpc.StatusCode


@pytest.mark.parametrize(
    "code", [Code.UNAVAILABLE, Code.INTERNAL, Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED]
)
async def test_what_proxies_make_of_a_dead_backend_is_tried_again(code: grpc.StatusCode) -> None:
    faults = Faults([code, code])
    async with connected(ScriptedRuns(), faults) as client:
        assert (await client.get_run("x")).name == "runs/x"
    assert faults.codes == []


async def test_a_refusal_is_never_tried_again() -> None:
    class Refusing(ScriptedRuns):
        asked = 0

        async def GetRun(self, request: Any, context: Any) -> Any:
            Refusing.asked += 1
            await context.abort_with_status(rpc_status.to_status(errors.RunUnknown("no such run").status()))

    async with connected(Refusing()) as client:
        with pytest.raises(errors.RunUnknown, match="no such run"):
            await client.get_run("x")
    assert Refusing.asked == 1


async def test_something_that_is_no_coordinator_is_said_at_once() -> None:
    async with serving(lambda server: None) as address, RelayClient.connect(address) as client:
        with pytest.raises(CallFailed, match="UNIMPLEMENTED"):
            await client.get_run("x")


async def test_nobody_there_is_one_line_with_the_address_and_what_to_do() -> None:
    async with RelayClient.connect("127.0.0.1:9", connect_timeout=0.2) as client:
        with pytest.raises(CoordinatorUnreachable) as caught:
            await client.get_run("x")
    assert str(caught.value).startswith("cannot reach the coordinator at 127.0.0.1:9 (Connection refused); start one")
    assert "\n" not in str(caught.value)


def test_a_database_that_is_away_is_not_taken_for_a_coordinator_that_is() -> None:
    said = str(CoordinatorUnreachable("127.0.0.1:9", "the database is out of reach; try again"))
    assert said == "the coordinator at 127.0.0.1:9 answers, but its database does not; try again"


async def test_a_creation_whose_answer_was_lost_is_the_same_request_again() -> None:
    """S9, F8: submissions are idempotent by request id, also when the reply to a commit was lost."""
    runs = ScriptedRuns()
    async with connected(runs) as client:
        await client.create_run({"method": "command"})
    first, second = runs.creations
    assert first.request_id == second.request_id and uuid.UUID(first.request_id).version == 4


async def test_watching_goes_on_where_it_broke_off() -> None:
    runs = ScriptedRuns(events=9, cuts=[2, 0, 3])
    async with connected(runs) as client:
        seen = [update.event.sequence async for update in client.watch_run("x") if update.HasField("event")]
    assert seen == list(range(1, 10))


async def test_a_log_comes_once_also_when_connections_break() -> None:
    """S7: every line is shown once."""
    runs = ScriptedRuns(log=b"".join(b"line %d\n" % n for n in range(20)), cuts=[3, 0, 7])
    async with connected(runs) as client:
        whole = b"".join([piece.data async for piece in client.read_logs("x")])
        runs.cuts = [2]
        tail = b"".join([piece.data async for piece in client.read_logs("x", tail_lines=5)])
    assert whole == runs.log
    assert tail == b"".join(b"line %d\n" % n for n in range(15, 20))


async def test_lost_contact_is_reported_once_each_time() -> None:
    reported: list[str] = []
    faults = Faults()
    async with connected(ScriptedRuns(), faults) as client:
        await client.get_run("x")
        client.channel.on_disconnect = reported.append
        faults.codes = [Code.UNAVAILABLE] * 3
        await client.get_run("x")
    assert reported == ["backend gone"]

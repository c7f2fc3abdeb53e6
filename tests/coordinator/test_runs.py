"""Runs as people submit and steer them."""

import asyncio
import uuid
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict
from grpc import aio

from relay.v1 import runs_pb2
from tests.coordinator.agent_client import STOPPED, SUCCEEDED, connected
from tests.coordinator.fleet import World, reason

State = runs_pb2.Run


async def refusal(world: World, *arguments: str, **more: Any) -> aio.AioRpcError:
    """What a submission is refused with."""
    with pytest.raises(aio.AioRpcError) as refused:
        await world.submit(*arguments, **more)
    return refused.value


async def test_the_same_request_is_carried_out_once(world: World) -> None:
    """S9, F8: also when many arrive at once, because every reply was lost."""
    request = str(uuid.uuid4())
    replies = await asyncio.gather(*(world.submit(request_id=request) for _ in range(8)))
    assert [reply.created for reply in replies].count(True) == 1
    assert {reply.run.name for reply in replies} == {"runs/r"}
    assert [kind for kind, _ in await world.history()] == ["created"]


async def test_a_request_id_or_a_name_used_for_something_else_is_refused(world: World) -> None:
    request = str(uuid.uuid4())
    await world.submit(request_id=request)
    assert reason(await refusal(world, request_id=request, priority=5)) == "REQUEST_ID_REUSED"
    assert reason(await refusal(world, request_id=str(uuid.uuid4()))) == "RUN_EXISTS"
    assert reason(await refusal(world)) == "RUN_EXISTS"


async def test_a_bad_run_file_names_every_mistake_and_creates_nothing(world: World) -> None:
    error = await refusal(world, priorty=1, lifecycle={"max_attempts": "many"})
    assert reason(error) == "SPEC_INVALID"
    assert "priority" in str(error.details()) and "lifecycle.max_attempts" in str(error.details())
    assert not (await world.replica.runs.ListRuns(runs_pb2.ListRunsRequest())).runs


async def test_inputs_must_be_there_already(world: World) -> None:
    digest = "sha256:" + "5" * 64
    error = await refusal(world, inputs=[runs_pb2.Input(path="data/train.jsonl", digest=digest, size=3)])
    assert (reason(error), "data/train.jsonl" in str(error.details())) == ("INPUT_MISSING", True)
    for path in ("/etc/passwd", "../up", "a//b"):
        assert reason(await refusal(world, inputs=[runs_pb2.Input(path=path, digest=digest)])) == "REQUEST_INVALID"


async def test_validate_only_creates_nothing_and_says_where_the_run_could_go(world: World) -> None:
    nowhere = await world.submit(validate_only=True)
    assert (nowhere.created, list(nowhere.agents_ready), nowhere.placement) == (False, [], "no host has joined yet")
    assert MessageToDict(nowhere.run.spec)["resources"]["gpus_per_node"] == 1
    async with connected(world.replica.agents, "a"):
        somewhere = await world.submit(validate_only=True)
        assert (list(somewhere.agents_ready), somewhere.placement) == (["a"], "can run now on a")
    with pytest.raises(aio.AioRpcError) as refused:
        await world.run()
    assert reason(refused.value) == "RUN_UNKNOWN"


async def test_why_a_run_waits_stands_beside_it(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(resources={"gpus_per_node": 2, "vram_gib": 40})
        await world.submit("next")
        await a.take()
        assert (await world.run()).reason == "needs 2 GPUs ≥ 40 GiB on one host; the best host has none"


async def test_a_queued_run_is_paused_resumed_and_cancelled_on_the_spot(world: World) -> None:
    await world.submit()
    runs = world.replica.runs
    assert (await runs.PauseRun(runs_pb2.PauseRunRequest(name="runs/r"))).state == State.PAUSED
    assert (await runs.ResumeRun(runs_pb2.ResumeRunRequest(name="runs/r"))).state == State.QUEUED
    cancelled = await runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r", reason="a typo"))
    assert (cancelled.state, cancelled.reason) == (State.CANCELLED, "cancelled by a user: a typo")
    assert cancelled.HasField("end_time")
    with pytest.raises(aio.AioRpcError) as refused:
        await runs.ResumeRun(runs_pb2.ResumeRunRequest(name="runs/r"))
    assert reason(refused.value) == "RUN_ENDED"


async def test_resume_queues_a_run_that_is_over_again_from_its_head(world: World) -> None:
    """Row A3: a run submitted again under its name resumes from its newest checkpoint."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = (await a.take()).lease
        await a.start(first)
        await a.save(first, 10)
        await a.complete(first, **SUCCEEDED)
        again = await world.submit(resume=True, priority=3)
        assert (again.created, again.run.state, again.run.priority) == (False, State.QUEUED, 3)
        second = await a.next_lease()
        assert [checkpoint.step for checkpoint in second.assignment.checkpoints] == [10]
        a.list_lease(second)
        assert (await world.submit(resume=True, priority=3)).run.state == State.RUNNING  # said twice, done once
        assert reason(await refusal(world, resume=True, priority=4)) == "RUN_EXISTS"
        assert await a.complete(second.lease, **STOPPED) == State.QUEUED


async def test_a_resume_is_carried_out_once_also_when_its_reply_was_lost(world: World) -> None:
    """S9, F8: the run has ended again before the request is repeated; and what was asked first is still known."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(request_id="first")
        await a.complete((await a.take()).lease, **SUCCEEDED)
        await world.submit(request_id="again", resume=True, priority=3)
        await a.complete((await a.next_lease()).lease, **SUCCEEDED)
        repeated = await world.submit(request_id="again", resume=True, priority=3)
        assert (repeated.created, repeated.run.state, repeated.run.attempts) == (False, State.SUCCEEDED, 2)
        assert (await world.submit(request_id="first")).run.priority == 3
        assert reason(await refusal(world, request_id="again", resume=True)) == "REQUEST_ID_REUSED"


async def test_a_request_that_was_refused_may_be_made_again(world: World) -> None:
    await world.submit()
    assert reason(await refusal(world, request_id="mine")) == "RUN_EXISTS"
    assert (await world.submit(request_id="mine", resume=True)).run.state == State.QUEUED


async def test_a_run_that_is_being_cancelled_cannot_be_queued_again_yet(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        lease = (await a.take()).lease
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r"))
        assert reason(await refusal(world, resume=True)) == "STATE_UNSUITABLE"
        assert await a.complete(lease, **STOPPED) == State.CANCELLED
        assert (await world.submit(resume=True)).run.state == State.QUEUED


async def test_runs_are_listed_newest_first_page_by_page_and_by_label(world: World) -> None:
    for number in range(5):
        await world.submit(f"r{number}", labels={"parity": "even" if number % 2 == 0 else "odd"})
    listing, token = [], ""
    while True:
        request = runs_pb2.ListRunsRequest(page_size=2, page_token=token)
        page = await world.replica.runs.ListRuns(request)
        listing += [run.name for run in page.runs]
        assert len(page.runs) <= 2
        if not (token := page.next_page_token):
            break
    assert listing == [f"runs/r{number}" for number in (4, 3, 2, 1, 0)]
    odd = await world.replica.runs.ListRuns(runs_pb2.ListRunsRequest(labels={"parity": "odd"}, states=[State.QUEUED]))
    assert [run.name for run in odd.runs] == ["runs/r3", "runs/r1"]
    with pytest.raises(aio.AioRpcError) as refused:
        await world.replica.runs.ListRuns(runs_pb2.ListRunsRequest(page_token="nonsense"))
    assert reason(refused.value) == "REQUEST_INVALID"


async def test_a_text_that_cannot_be_stored_is_refused(world: World) -> None:
    """F18."""
    spec = struct_pb2.Struct()
    spec.update({"version": "relay/v1", "method": "command", "command": ["true\0"]})
    with pytest.raises(aio.AioRpcError) as refused:
        await world.replica.runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec))
    assert reason(refused.value) in ("REQUEST_INVALID", "SPEC_INVALID")

"""Leases over real gRPC and a real database: granted, fenced, lapsed, regranted and ended."""

import grpc
import pytest
from grpc import aio

from relay.v1 import agents_pb2 as pb
from relay.v1 import fleet_pb2, runs_pb2
from tests.coordinator.agent_client import FAULTED, LEAVING, STOPPED, SUCCEEDED, connected, failed
from tests.coordinator.fleet import RUN, STOP, World, reason

State = runs_pb2.Run


async def test_a_submitted_run_is_pushed_to_a_host_and_ends_as_the_host_says(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        assert (desired.action, desired.assignment.run, desired.assignment.attempt) == (RUN, "runs/r", 1)
        assert '"command":["true"]' in desired.assignment.spec_json
        assert (await a.heartbeat()).leases[0].HasField("assignment") is False
        await a.start(desired.lease)
        assert await a.complete(desired.lease, **SUCCEEDED) == State.SUCCEEDED
        assert not (await a.heartbeat()).leases
    kinds = [kind for kind, _ in await world.history()]
    assert kinds == ["created", "granted", "started", "ended"]


async def test_two_grants_of_a_run_have_two_ids_and_only_the_newer_writes(world: World) -> None:
    """S1, S2."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await world.submit(resources={"prefer_hosts": ["a"]})
        first = await a.take()
        await a.start(first.lease)
        await world.expire(first.lease)
        second = await b.take()
        assert second.lease != first.lease and second.assignment.attempt == 2
        for write in (a.start(first.lease), a.save(first.lease, 1), a.complete(first.lease, **SUCCEEDED)):
            with pytest.raises(aio.AioRpcError) as refused:
                await write
            assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
        assert not (await a.heartbeat()).leases
        attempts = await world.attempts()
        assert [attempt.reason for attempt in attempts] == ["no heartbeat; granted to another host", ""]
        assert (await world.run()).failures == 0


async def test_a_lapsed_lease_counts_until_it_is_granted_elsewhere(world: World) -> None:
    """L1's other half: a missing heartbeat does not mean a dead host."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        await a.start(desired.lease)
        await world.expire(desired.lease)
        assert (await world.run()).attempt.state == runs_pb2.Attempt.LAPSED
        await world.store(desired.lease, 5)
        assert (await a.save(desired.lease, 10, after=5)).head
        assert (await a.heartbeat()).leases[0].action == RUN
        run = await world.run()
        assert (run.attempt.state, run.attempts, run.faults) == (runs_pb2.Attempt.HELD, 1, 0)
    assert [kind for kind, _ in await world.history()][-2:] == ["checkpoint", "renewed"]


async def test_under_stop_the_lapse_ends_the_lease(world: World) -> None:
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await world.submit(resources={"prefer_hosts": ["a"]}, lifecycle={"on_disconnect": "stop"})
        desired = await a.take()
        assert desired.assignment.on_disconnect == pb.STOP
        await world.expire(desired.lease)
        with pytest.raises(aio.AioRpcError) as refused:
            await a.complete(desired.lease, stopped=pb.Stopped(cause=pb.Stopped.TRUST_LOST))
        assert reason(refused.value) == "LEASE_LOST"
        assert (await b.take()).assignment.attempt == 2


async def test_cancel_reaches_the_host_at_once_and_success_still_counts(world: World) -> None:
    """L4, S10: a stop is desired for as long as the lease lasts, and is the same stop each time."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        run = await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r", reason="enough"))
        assert (run.state, run.wanted) == (State.RUNNING, State.CANCEL)
        pushed = await a.until(lambda reply: reply.leases[0].action == STOP)
        assert (pushed.heartbeat_sequence, pushed.leases[0].reason) == (0, pb.DesiredLease.CANCEL)
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r"))
        again = await a.heartbeat()
        assert again.desired_version == pushed.desired_version
        assert await a.complete(desired.lease, **SUCCEEDED) == State.SUCCEEDED


async def test_what_an_operator_said_of_a_stop_stays_with_the_run(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r", reason="enough"))
        await a.until(lambda reply: reply.leases[0].action == STOP)
        assert await a.complete(desired.lease, **STOPPED) == State.CANCELLED
        run = await world.replica.runs.GetRun(runs_pb2.GetRunRequest(name="runs/r"))
        assert run.reason == "cancelled by a user: enough"


async def test_pause_sharpens_to_cancel_and_never_back(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        await world.replica.runs.PauseRun(runs_pb2.PauseRunRequest(name="runs/r"))
        assert (await a.heartbeat()).leases[0].reason == pb.DesiredLease.PAUSE
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r"))
        assert (await a.heartbeat()).leases[0].reason == pb.DesiredLease.CANCEL
        with pytest.raises(aio.AioRpcError) as refused:
            await world.replica.runs.PauseRun(runs_pb2.PauseRunRequest(name="runs/r"))
        assert reason(refused.value) == "STATE_UNSUITABLE"
        assert await a.complete(desired.lease, **STOPPED) == State.CANCELLED
        with pytest.raises(aio.AioRpcError) as refused:
            await world.replica.runs.PauseRun(runs_pb2.PauseRunRequest(name="runs/r"))
        assert reason(refused.value) == "RUN_ENDED"


async def test_a_paused_run_rests_until_it_is_resumed_and_goes_on_as_another_attempt(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = await a.take()
        await world.replica.runs.PauseRun(runs_pb2.PauseRunRequest(name="runs/r"))
        assert await a.complete(first.lease, **STOPPED) == State.PAUSED
        assert not (await a.heartbeat()).leases
        await world.replica.runs.ResumeRun(runs_pb2.ResumeRunRequest(name="runs/r"))
        second = await a.take()
        assert second.assignment.attempt == 2
        run = await world.run()
        assert (run.failures, run.faults) == (0, 0)


async def test_an_agent_that_leaves_hands_its_run_on_with_nothing_spent(world: World) -> None:
    """L1: a death that is announced costs no TTL."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await world.submit(resources={"prefer_hosts": ["a"]})
        first = await a.take()
        a.readiness = pb.Readiness(ready=False, leaving=True, reason="SIGTERM")
        await a.heartbeat()
        await a.complete(first.lease, **LEAVING)
        assert (await b.take()).assignment.attempt == 2
        run = await world.run()
        assert (run.failures, run.faults) == (0, 0)


async def test_faults_spend_no_attempt_and_another_host_is_tried_first(world: World) -> None:
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        await world.submit(resources={"prefer_hosts": ["a"]}, lifecycle={"max_attempts": 1})
        first = await a.take()
        assert await a.complete(first.lease, **FAULTED) == State.QUEUED
        await a.heartbeat()
        assert (await b.take()).assignment.attempt == 2
        run = await world.run()
        assert (run.failures, run.faults, run.error.message) == (0, 1, "the disk is full")


async def test_own_failures_back_off_and_end_the_run_with_the_real_error(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(lifecycle={"max_attempts": 2})
        first = await a.take()
        assert await a.complete(first.lease, **failed("first")) == State.QUEUED
        run = await world.run()
        assert run.HasField("eligible_time") and run.failures == 1
        async with world.db.connection() as conn:
            await conn.execute("UPDATE runs SET eligible_time = NULL")
        second = await a.next_lease()
        assert await a.complete(second.lease, **failed("CUDA out of memory")) == State.FAILED
        run = await world.run()
        assert (run.state, run.error.message) == (State.FAILED, "CUDA out of memory")


async def test_a_completion_is_taken_once_and_its_repetition_answered_alike(world: World) -> None:
    """F8, F17, S9: the reply was lost, the report is sent again."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        assert await a.complete(desired.lease, **SUCCEEDED) == State.SUCCEEDED
        assert await a.complete(desired.lease, **SUCCEEDED) == State.SUCCEEDED
        with pytest.raises(aio.AioRpcError) as refused:
            await a.complete(desired.lease, **failed())
        assert reason(refused.value) == "LEASE_LOST"
    assert [kind for kind, _ in await world.history()].count("ended") == 1


async def test_success_waits_for_its_last_events(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        final = [pb.Cursor(source="events", offset=100)]
        await world.store(desired.lease, 60)
        with pytest.raises(aio.AioRpcError) as refused:
            await a.complete(desired.lease, final_cursors=final, **SUCCEEDED)
        assert reason(refused.value) == "EVENTS_MISSING"
        await world.store(desired.lease, 100)
        assert await a.complete(desired.lease, final_cursors=final, **SUCCEEDED) == State.SUCCEEDED


async def test_a_slot_is_free_only_once_its_dying_trainer_is_reaped(world: World) -> None:
    """S9: an agent process never holds two leases for one slot."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit("one")
        first = await a.take()
        await world.submit("two")
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/one"))
        held = dict(a.held)
        await a.complete(first.lease, **STOPPED)
        a.held = held
        assert not (await a.heartbeat()).leases
        agent = await world.replica.fleet.GetAgent(fleet_pb2.GetAgentRequest(name="agents/a"))
        assert not agent.free_slots
        a.held = {}
        assert (await a.next_lease()).assignment.run == "runs/two"

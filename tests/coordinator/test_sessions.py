"""Sessions: who may speak for an agent, what a heartbeat reply carries, and what becomes of leases not held."""

import asyncio
import uuid
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc import aio

from coordinator.background.planner import plan_once
from coordinator.commands import sessions
from coordinator.rpc import requests
from coordinator.values import Heartbeat, Hello, Readiness
from relay.errors import SessionReplaced
from relay.timing import DEFAULT
from relay.v1 import agents_pb2 as pb
from relay.v1 import fleet_pb2, runs_pb2
from relay.v1.agents_pb2_grpc import AgentsStub
from tests.coordinator.agent_client import SUCCEEDED, ScriptedAgent, connected
from tests.coordinator.fleet import RUN, World, reason

Fleet = fleet_pb2.Agent


async def refusal(agent: ScriptedAgent) -> str:
    """Why a hello is refused."""
    with pytest.raises(aio.AioRpcError) as refused:
        await agent.hello()
    return reason(refused.value)


async def heard_long_ago(world: World, name: str) -> None:
    async with world.db.connection() as conn:
        await conn.execute(
            """UPDATE agents SET heartbeat_time = heartbeat_time - interval '1 hour',
                                 connect_time = connect_time - interval '1 hour' WHERE name = $1""",
            name,
        )


async def test_the_welcome_says_how_to_live_here(world: World) -> None:
    agent = ScriptedAgent(world.replica.agents, "a")
    welcome = await agent.hello()
    assert (welcome.ttl.seconds, welcome.heartbeat_interval.seconds, welcome.kill_time.seconds) == (30, 5, 8)
    deployment = await world.replica.fleet.GetDeployment(fleet_pb2.GetDeploymentRequest())
    assert welcome.deployment_id == deployment.deployment_id
    reply = await agent.heartbeat()
    assert (reply.session_id, reply.heartbeat_sequence, list(reply.leases)) == (welcome.session_id, 1, [])


async def test_an_agent_of_another_deployment_is_refused(world: World) -> None:
    """F9: a wrong or empty database cannot end a fleet."""
    agent = ScriptedAgent(world.replica.agents, "a")
    agent.deployment = str(uuid.uuid4())
    assert await refusal(agent) == "DEPLOYMENT_FOREIGN"


async def test_a_clone_is_refused_while_the_older_session_beats(world: World) -> None:
    """F21."""
    async with connected(world.replica.agents, "a") as [original]:
        clone = ScriptedAgent(world.replica.agents, "a", boot="boot-2", instance=original.instance)
        assert await refusal(clone) == "IDENTITY_IN_USE"
        await original.heartbeat()


async def test_otherwise_the_newer_wins_and_the_replaced_instance_stays_out(world: World) -> None:
    """F21: another boot after a while without heartbeats; the old stream ends with the reason, and a new hello is
    refused.
    """
    async with connected(world.replica.agents, "a") as [original]:
        await heard_long_ago(world, "a")
        newer = ScriptedAgent(world.replica.agents, "a", boot="boot-2")
        await newer.hello()
        with pytest.raises(aio.AioRpcError) as ended:
            await original.until(lambda _: False)
        assert (ended.value.code(), reason(ended.value)) == (grpc.StatusCode.ABORTED, "SESSION_REPLACED")
        assert await refusal(original) == "SESSION_REPLACED"
        await newer.heartbeat()


async def test_a_restarted_agent_takes_up_what_its_shims_still_run(world: World) -> None:
    """F2: another process of the same boot; no attempt is used, and it hears what is stored."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        await a.start(desired.lease)
        await world.store(desired.lease, 40)
        await a.save(desired.lease, 10, after=40)
        restarted = ScriptedAgent(world.replica.agents, "a")
        restarted.held = a.held
        [record] = (await restarted.hello()).leases
        assert record.started and [(c.source, c.offset) for c in record.cursors] == [("events", 40)]
        assert [checkpoint.step for checkpoint in record.checkpoints] == [10]
        [lease] = (await restarted.heartbeat()).leases
        assert (lease.lease, lease.action, lease.HasField("assignment")) == (desired.lease, RUN, False)
    assert len(await world.attempts()) == 1


async def test_a_lease_that_a_new_hello_lacks_has_ended_as_a_fault(world: World) -> None:
    """L1: a host that came back empty has lost its trainer; no TTL is waited for."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = await a.take()
        rebooted = ScriptedAgent(world.replica.agents, "a")
        await rebooted.hello()
        assert (await rebooted.assigned()).assignment.attempt == 2
        [ended, _] = await world.attempts()
        assert (ended.name, ended.outcome) == (first.lease, runs_pb2.Attempt.FAULTED)


async def test_under_stop_a_reboot_waits_for_the_lapse_however_often_it_says_hello(world: World) -> None:
    """S3: a clone looks like a reboot, so it is not given what the original may still run."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit(lifecycle={"on_disconnect": "stop"})
        first = await a.take()
        await heard_long_ago(world, "a")
        rebooted = ScriptedAgent(world.replica.agents, "a", boot="boot-2")
        for _ in range(2):
            await rebooted.hello()
            assert not (await rebooted.heartbeat()).leases
        assert (await world.run()).attempt.name == first.lease
        await world.expire(first.lease)
        assert (await rebooted.next_lease()).assignment.attempt == 2


async def test_a_lease_reported_and_then_dropped_ends_at_once(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        await a.take()
        a.held.clear()
        assert (await a.next_lease()).assignment.attempt == 2
        assert (await world.run()).faults == 1


async def test_an_assignment_is_sent_until_the_lease_is_listed(world: World) -> None:
    """F17: the next reply makes up for a lost one."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        first = await a.assigned()
        again = (await a.heartbeat()).leases[0]
        assert again == first
        a.list_lease(first, pb.HeldLease.PREPARING)
        assert not (await a.heartbeat()).leases[0].HasField("assignment")


async def test_versions_of_the_wish_only_grow_and_name_their_session(world: World) -> None:
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r"))
        await a.complete(desired.lease, **SUCCEEDED)
        await a.heartbeat()
        versions = [reply.desired_version for reply in a.replies]
        assert versions == sorted(versions) and len({reply.session_id for reply in a.replies}) == 1
        assert len(set(versions)) == 4  # before, granted, to be stopped, ended


async def test_a_heartbeat_of_the_replaced_session_does_not_judge_what_the_new_one_holds(world: World) -> None:
    """A late heartbeat arrives between the hello and the first reply: the hello lists what it had not listed yet."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        desired = await a.assigned()
        late = Heartbeat(agent="a", session_id=uuid.UUID(a.replies[-1].session_id), held=(), readiness=Readiness())
        a.list_lease(desired)
        await sessions.open_session(world.db, hello_of(a), DEFAULT)
        await sessions.record_heartbeats(world.db, [late], 30.0)
    [attempt] = await world.attempts()
    assert attempt.state == runs_pb2.Attempt.HELD


async def test_a_hello_that_a_later_one_has_overtaken_takes_nothing_away(world: World) -> None:
    """F17, S3: it was on its way for so long that its agent had given up on it, and holds a lease by now."""
    async with connected(world.replica.agents, "a") as [a]:
        await a.heartbeat()
        await world.submit()
        desired = await a.assigned()
        await sessions.open_session(world.db, hello_of(a, dial=2, held=()), DEFAULT)
        a.list_lease(desired)
        await sessions.open_session(world.db, hello_of(a, dial=3), DEFAULT)
        for stale in (2, 3):
            with pytest.raises(SessionReplaced):
                await sessions.open_session(world.db, hello_of(a, dial=stale, held=()), DEFAULT)
        await sessions.open_session(world.db, hello_of(a, instance_id="next", dial=1), DEFAULT)
    [attempt] = await world.attempts()
    assert attempt.state == runs_pb2.Attempt.HELD


def hello_of(agent: ScriptedAgent, **more: Any) -> Hello:
    """What the agent would say."""
    plain: dict[str, Any] = {
        "agent": agent.name, "instance_id": agent.instance, "boot_id": agent.boot, "deployment_id": "", "labels": {},
        "capability": {}, "slots": (0,),
        "held": requests.parse_held(list(agent.held.values())), "readiness": Readiness(),
    }  # fmt: skip
    return Hello(**{**plain, **more})


async def test_a_heartbeat_that_a_later_one_has_overtaken_says_nothing(world: World) -> None:
    """F17: it does not list a lease that was started after it was sent, and would end it."""
    async with connected(world.replica.agents, "a") as [agent]:
        await world.submit()
        desired = await agent.take()
        await agent.say(1)
        reply = await agent.heartbeat()
        assert [lease.lease for lease in reply.leases] == [desired.lease]
        assert [attempt.outcome for attempt in await world.attempts()] == [runs_pb2.Attempt.OUTCOME_UNSPECIFIED]


async def test_the_hello_says_at_once_what_is_free_and_whether_work_is_welcome(world: World) -> None:
    """S9: between the hello and the first heartbeat nothing is granted by what an older session reported."""
    async with connected(world.replica.agents, "a") as [a]:
        await a.heartbeat()
        dying = requests.parse_held([pb.HeldLease(lease=f"runs/gone/leases/{uuid.uuid4()}", slots=[0])])
        await sessions.open_session(world.db, hello_of(a, held=dying, readiness=Readiness(ready=False)), DEFAULT)
        agent = await world.replica.fleet.GetAgent(_named("a"))
        assert (agent.state, list(agent.free_slots)) == (Fleet.NOT_READY, [])


async def test_a_heartbeat_that_is_taken_after_its_stream_ended_does_not_bring_the_agent_back(world: World) -> None:
    """It was still in a batch. An agent without a stream is granted nothing."""
    agent = ScriptedAgent(world.replica.agents, "a")
    opened = await sessions.open_session(world.db, hello_of(agent), DEFAULT)
    await sessions.close_session(world.db, "a", opened.session_id)
    late = Heartbeat(agent="a", session_id=opened.session_id, held=(), readiness=Readiness())
    await sessions.record_heartbeats(world.db, [late], 30.0)
    assert (await world.replica.fleet.GetAgent(_named("a"))).state == Fleet.UNREACHABLE


async def test_a_session_that_the_database_has_never_heard_of_ends(world: World) -> None:
    """F9: an older copy of the database was restored. The agent says hello again; other agents are served on."""
    async with connected(world.replica.agents, "a", "b") as [a, b]:
        async with world.db.connection() as conn:
            await conn.execute("DELETE FROM agents WHERE name = 'a'")
        with pytest.raises(aio.AioRpcError) as ended:
            await a.heartbeat()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await a.hello()
        await a.heartbeat()
        await b.heartbeat()


async def stored(world: World) -> tuple[object, ...]:
    """What a heartbeat of the agent changes."""
    async with world.db.connection() as conn:
        row = await conn.fetchrow("SELECT expire_time, ready, heartbeat_time FROM places JOIN agents ON name = agent")
    return tuple(row)


async def test_only_the_current_session_renews(world: World) -> None:
    """S2: a heartbeat of a replaced session changes nothing."""
    async with connected(world.replica.agents, "a") as [a]:
        await world.submit()
        lease = await a.take()
        newer = ScriptedAgent(world.replica.agents, "a", instance=a.instance)
        newer.held = a.held
        await newer.hello()
        stale = Heartbeat(
            agent="a",
            session_id=uuid.UUID(a.replies[-1].session_id),
            held=requests.parse_held(list(a.held.values())),
            readiness=Readiness(ready=False),
        )
        before = await stored(world)
        desired = (await sessions.record_heartbeats(world.db, [stale], 30.0))["a"]
        assert desired.session_id != stale.session_id  # which is what its stream ends with
        assert await stored(world) == before
        assert (await newer.heartbeat()).leases[0].lease == lease.lease


async def test_any_replica_serves_any_agent_and_pushes_what_the_other_changed(world: World) -> None:
    """F5, L4: the desired state is in the database."""
    async with world.second() as second, connected(second.agents, "a") as [a]:
        await world.submit()
        desired = await a.take()
        await world.replica.runs.CancelRun(runs_pb2.CancelRunRequest(name="runs/r"))
        assert (await a.until(lambda reply: bool(reply.leases[0].reason))).heartbeat_sequence == 0
        moved = ScriptedAgent(world.replica.agents, "a", instance=a.instance)
        moved.held = a.held
        await moved.hello()
        assert [lease.lease for lease in (await moved.heartbeat()).leases] == [desired.lease]
    assert len(await world.attempts()) == 1


async def test_two_planners_make_one_grant(world: World) -> None:
    """S9: leadership only saves work; the grant itself is guarded."""
    async with connected(world.replica.agents, "a", "b"):
        await world.submit()
        await asyncio.gather(*(plan_once(world.db, world.config.timing) for _ in range(4)))
    assert len(await world.attempts()) == 1


async def test_a_shutdown_hands_the_stream_over(world: World) -> None:
    """F5."""
    async with AsyncExitStack() as stack:
        async with world.second() as second:
            channel = await stack.enter_async_context(aio.insecure_channel(second.address))
            agent = ScriptedAgent(AgentsStub(channel), "a")
            await agent.hello()
        await _ended_as_unavailable(agent)
    moved = ScriptedAgent(world.replica.agents, "a", instance=agent.instance)
    await moved.hello()


async def _ended_as_unavailable(agent: ScriptedAgent) -> None:
    with pytest.raises(aio.AioRpcError) as ended:
        await agent.until(lambda _: False)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_fleet_shows_what_agents_said_of_themselves(world: World) -> None:
    async with connected(world.replica.agents, "a", "g", gpus=2) as [a, g]:
        a.readiness = pb.Readiness(ready=False, reason="disk full")
        await a.heartbeat()
        g.readiness = pb.Readiness(leaving=True)
        await g.heartbeat()
        request = fleet_pb2.ListAgentsRequest()
        found = {agent.name: agent for agent in (await world.replica.fleet.ListAgents(request)).agents}
        assert (found["agents/a"].state, found["agents/a"].reason) == (Fleet.NOT_READY, "is not ready: disk full")
        assert found["agents/g"].state == Fleet.LEAVING
        assert (list(found["agents/g"].free_slots), found["agents/g"].capability.memory_bytes) == ([0, 1], 8 << 30)
        await heard_long_ago(world, "a")
        assert (await world.replica.fleet.GetAgent(_named("a"))).state == Fleet.UNREACHABLE
        with pytest.raises(aio.AioRpcError) as refused:
            await world.replica.fleet.GetAgent(_named("nobody"))
        assert reason(refused.value) == "AGENT_UNKNOWN"


def _named(name: str) -> fleet_pb2.GetAgentRequest:
    return fleet_pb2.GetAgentRequest(name=f"agents/{name}")


@pytest.mark.parametrize(
    "hello",
    [
        pb.Hello(agent="agents/UPPER", instance_id="i", boot_id="b"),
        pb.Hello(agent="agents/a", instance_id="", boot_id="b"),
        pb.Hello(agent="agents/a", instance_id="i", boot_id="b", labels={"k": "\0"}),
        pb.Hello(agent="agents/a", instance_id="i", boot_id="b", held=[pb.HeldLease(lease="runs/r/leases/x")]),
        pb.Hello(agent="agents/a", instance_id="i", boot_id="b", readiness=pb.Readiness(reason="\0")),
        pb.Hello(
            agent="agents/a", instance_id="i", boot_id="b", capability=fleet_pb2.Capability(versions={"torch": "2\0"})
        ),
    ],
)
async def test_a_hello_that_makes_no_sense_is_refused(world: World, hello: pb.Hello) -> None:
    """F18: before it can spoil a batch."""
    call = world.replica.agents.Session()
    await call.write(pb.SessionRequest(hello=hello))
    with pytest.raises(aio.AioRpcError) as refused:
        await call.read()
    assert reason(refused.value) == "REQUEST_INVALID"

"""The agent as a whole: killed, detached, leaving, out of reach. Real processes throughout."""

import asyncio
import json
import os
import re
import signal
import sys
from typing import Any

import pytest

from relay.errors import DeploymentForeign, IdentityInUse, RelayError, Unauthenticated
from relay.v1 import agents_pb2 as pb
from tests.agent.fake_coordinator import FakeCoordinator, Lease
from tests.agent.hosts import REPOSITORY, Gate, Host, MakeHost, stub


async def training(fake: FakeCoordinator, host: Host, gate: Gate, **settings: Any) -> Lease:
    """A run that has made three of nine steps, its checkpoint of step 2 safe."""
    await host.start()
    lease = await fake.grant(stub(steps=9, save_every=2, gate=gate.path, **settings))
    gate.let(3)
    await fake.until(lambda: lease.steps() == [1, 2, 3] and 2 in lease.copied())
    return lease


async def test_an_agent_killed_and_started_again_takes_its_trainer_up(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """F2: the trainer never notices, no attempt is used, no line is lost or doubled."""
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    trainer = host.trainer("r")
    await host.end(signal.SIGKILL)
    gate.let(3)
    await host.start()
    await fake.until(lambda: 6 in lease.copied())
    assert host.trainer("r") == trainer and trainer in host.processes()
    assert [held.lease for held in fake.hellos[1].held] == [lease.name]
    gate.let(3)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and lease.starts == 1
    assert lease.steps() == list(range(1, 10))
    assert (host.attempt("r") / "events.jsonl").read_bytes() == lease.sources["events"]


async def test_a_trainer_that_ends_while_no_agent_looks_is_completed_by_the_next(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    await host.end(signal.SIGKILL)
    gate.let(6)
    while host.trainer("r") in host.processes():
        await fake.wait_for_anything()
    await host.start()
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and lease.steps() == list(range(1, 10))


async def test_what_a_shim_that_died_without_an_agent_left_is_brought_home_by_the_next(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """F2: nothing of it lives when its lease ends, and neither a line nor a checkpoint of it is lost."""
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    await host.end(signal.SIGKILL)
    gate.let(1)
    while (host.attempt("r") / "events.jsonl").read_text().count('"checkpoint"') < 2:
        await fake.wait_for_anything()
    os.kill(json.loads((host.attempt("r") / "shim.json").read_text())["shim_pid"], signal.SIGKILL)
    await host.start()
    await fake.until(lambda: lease.ended)
    assert lease.outcome.faulted.error.message and lease.steps() == [1, 2, 3, 4] and 4 in lease.copied()
    assert host.trainer("r") not in host.processes()


async def test_detaching_ends_only_the_agent(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    trainer = host.trainer("r")
    argv = [sys.executable, "-m", "agent", "detach", "--runtime-dir", str(host.folder / "sock")]
    detaching = await asyncio.create_subprocess_exec(*argv, cwd=REPOSITORY)
    assert await detaching.wait() == 0
    assert host.agent is not None and await host.agent.wait() == 0
    assert trainer in host.processes()
    await host.start()
    gate.let(6)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and lease.starts == 1 and lease.steps() == list(range(1, 10))


async def test_leaving_saves_publishes_releases_and_exits(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    """SIGTERM: readiness first, then the trainer's own checkpoint, then the lease."""
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    assert await host.end(signal.SIGTERM) == 0
    assert lease.outcome.stopped.cause == pb.Stopped.LEAVING
    assert 3 in lease.copied()
    assert any(beat.readiness.leaving and not beat.readiness.ready for beat in fake.heartbeats)
    assert not host.processes()


async def test_leaving_does_not_wait_for_a_step_beyond_the_budget(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """The step that runs now is measured to take longer: killed, and the last finished checkpoint counts."""
    host = hosts(fake.address, "--leaving-budget", "100ms")
    lease = await training(fake, host, gate)
    for step in (4, 5):
        await fake.until_beats(4)
        gate.let(1)
        await fake.until(lambda step=step: lease.steps()[-1] == step)  # type: ignore[misc]
    await fake.until_beats(3)  # by now the agent has seen it too
    assert await host.end(signal.SIGTERM) == 0
    assert lease.outcome.stopped.cause == pb.Stopped.LEAVING
    assert max(lease.copied()) == 4  # asked to stop it would have saved step 5


async def test_a_second_sigterm_hurries(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    host = hosts(fake.address)
    lease = await training(fake, host, gate, deaf=1)
    assert host.agent is not None
    host.agent.send_signal(signal.SIGTERM)
    await fake.until(lambda: fake.heartbeats[-1].readiness.leaving)
    assert await host.end(signal.SIGTERM) == 0
    assert lease.outcome.stopped.cause == pb.Stopped.LEAVING
    assert json.loads((host.attempt("r") / "exit.json").read_text())["kill_reason"] == "told to hurry"
    assert not host.processes()


async def test_a_lease_that_comes_while_leaving_is_given_back(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """It was granted before the coordinator had heard: begun, it would hold up the way out until it had trained."""
    host = hosts(fake.address, "--slots", "2")
    await training(fake, host, gate, deaf=1)
    assert host.agent is not None
    host.agent.send_signal(signal.SIGTERM)
    await fake.until(lambda: fake.heartbeats[-1].readiness.leaving)
    late = await fake.grant(stub("late", steps=99, gate=gate.path), "2" * 32, slot=1)
    await fake.until(lambda: late.ended)
    assert late.outcome.stopped.cause == pb.Stopped.LEAVING and not late.starts
    assert await host.end(signal.SIGTERM) == 0


async def test_a_second_sigterm_waits_for_no_copy(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    """F11: the store is away and the coordinator is not: the lease is released, the copy is given up."""
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    fake.storing = False
    assert host.agent is not None
    host.agent.send_signal(signal.SIGTERM)
    await fake.until(lambda: 3 in lease.checkpoints)
    assert await host.end(signal.SIGTERM) == 0
    assert lease.outcome.stopped.cause == pb.Stopped.LEAVING and 3 not in lease.copied()


async def test_detaching_while_leaving_leaves_the_rest_to_the_next_agent(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    host = hosts(fake.address)
    lease = await training(fake, host, gate, deaf=1)
    assert host.agent is not None
    host.agent.send_signal(signal.SIGTERM)
    await fake.until(lambda: fake.heartbeats[-1].readiness.leaving)
    assert await host.end(signal.SIGUSR2) == 0
    assert host.trainer("r") in host.processes() and not lease.ended
    gate.let(6)
    await host.start()
    await fake.until(lambda: lease.ended)
    assert lease.steps() == list(range(1, 10))


async def test_the_next_agent_may_have_another_root(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    """What a trainer writes is looked for where it was started."""
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    await host.end(signal.SIGKILL)
    host.arguments += ["--root", str(host.folder / "elsewhere")]
    await host.start()
    gate.let(6)
    await fake.until(lambda: lease.ended)
    assert lease.steps() == list(range(1, 10)) and 8 in lease.copied()
    assert lease.outcome.succeeded.output.manifest_digest


async def test_an_agent_that_nobody_can_reach_stops_its_trainers_after_a_while(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    host = hosts(fake.address, "--disconnect-limit", "1s")
    lease = await training(fake, host, gate)
    fake.answering = False
    fake.refuse_hello = IdentityInUse()
    await fake.until(lambda: (host.attempt("r") / "ckpt/step_00000003").is_dir())
    fake.refuse_hello, fake.answering = None, True
    await fake.until(lambda: lease.ended)
    assert lease.outcome.stopped.cause == pb.Stopped.LEAVING


async def test_under_stop_a_trainer_is_dead_before_its_lease_can_lapse(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """S3, F3: heartbeats keep it alive; without answers its shim kills it."""
    host = hosts(fake.address)
    await host.start()
    lease = await fake.grant(stub(steps=99, save_every=0, gate=gate.path), on_disconnect=pb.STOP)
    gate.let(1)
    await fake.until(lambda: lease.steps() == [1])
    await fake.until_beats(7)  # longer than the first trust lasts
    assert host.trainer("r") in host.processes()
    fake.answering = False
    while host.trainer("r") in host.processes():
        await fake.wait_for_anything()
    fake.answering = True
    await fake.until(lambda: lease.ended)
    assert lease.outcome.stopped.cause == pb.Stopped.TRUST_LOST
    assert json.loads((host.attempt("r") / "exit.json").read_text())["trust_lost"]


@pytest.mark.parametrize("option", ["--runtime-dir", "--data-dir"])
async def test_one_agent_per_folder(fake: FakeCoordinator, hosts: MakeHost, option: str) -> None:
    """Two would fetch into one cache, and take each other's trainers up."""
    host = hosts(fake.address)
    await host.start()
    await fake.until(lambda: fake.hellos)
    first = host.agent
    free = {"--runtime-dir": "--data-dir", "--data-dir": "--runtime-dir"}[option]
    host.arguments += [free, str(host.folder / "own")]
    await host.start()
    assert host.agent is not None and await host.agent.wait() == 78
    assert f"another agent runs with {option} {host.folder}" in host.log.read_text()
    host.agent = first


async def test_detaching_signals_nobody_for_an_agent_that_has_died(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """Its pid may be another program's by now."""
    host = hosts(fake.address)
    await host.start()
    await fake.until(lambda: fake.hellos)
    await host.end(signal.SIGKILL)
    other = await asyncio.create_subprocess_exec("sleep", "60")
    (host.folder / "sock/agent.lock").write_text(str(other.pid))
    argv = [sys.executable, "-m", "agent", "detach", "--runtime-dir", str(host.folder / "sock")]
    detaching = await asyncio.create_subprocess_exec(*argv, cwd=REPOSITORY)
    assert await detaching.wait() == 1
    assert other.returncode is None
    other.kill()
    await other.wait()


@pytest.mark.parametrize("error", [DeploymentForeign(), Unauthenticated()])
async def test_a_wrong_coordinator_ends_no_trainer(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate, error: RelayError
) -> None:
    """It was started with an empty database, or another secret: until it is right again it counts as away."""
    host = hosts(fake.address)
    lease = await training(fake, host, gate)
    fake.answering, fake.refuse_hello = False, error
    fake.refused_calls = dict.fromkeys(("RegisterCheckpoint", "AddCopy", "CompleteLease"), Unauthenticated())
    gate.let(3)
    await fake.until(lambda: fake.refused > 3)
    fake.answering, fake.refuse_hello, fake.refused_calls = True, None, {}
    gate.let(3)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and lease.starts == 1 and lease.steps() == list(range(1, 10))


async def test_every_line_of_an_attempt_carries_its_run_lease_and_attempt(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """Two attempts at once do not mix, and a stop that a session brings is logged as the attempt's own."""
    host = hosts(fake.address, "--slots", "2")
    one = await training(fake, host, gate)
    two = await fake.grant(stub("two", steps=2, save_every=1), "2" * 32, attempt=7, slot=1)
    await fake.until(lambda: two.ended)
    await fake.stop(one)
    await fake.until(lambda: one.ended)
    await host.end()
    lines = re.findall(r"^\S+Z [A-Z]+ ([\w.]+): ([a-z ]+)(?: |$)((?:\w+=.*)?)", host.log.read_text(), re.M)
    life = [f"run=r lease={'1' * 32} attempt=1", f"run=two lease={'2' * 32} attempt=7"]
    rooms = ("agent.attempt", "agent.checkpoints")
    ours = [(words, fields) for logger, words, fields in lines if logger.startswith(rooms)]
    assert all(sum(fields.endswith(each) for each in life) == 1 for _, fields in ours), ours
    whole = {"trainer started", "checkpoint registered", "checkpoint copied", "trainer ended", "attempt over"}
    for each in life:
        assert whole <= {words for words, fields in ours if fields.endswith(each)}
    assert [fields for words, fields in ours if words == "stop requested"] == [f"reason=cancel grace=5 {life[0]}"]

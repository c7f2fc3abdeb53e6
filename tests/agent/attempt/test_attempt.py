"""One lease's life on a real agent with real shims and trainers, against a coordinator that the test scripts."""

import json
import shutil
import signal
import sys

import pytest

from relay.errors import CheckpointUnknown, DeploymentForeign, InputMissing, InvalidRequest
from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2
from tests.agent.fake_coordinator import FakeCoordinator, Lease
from tests.agent.hosts import Gate, MakeHost, kill, stub

SECOND = "2" * 32


async def test_a_run_from_its_grant_to_its_result(fake: FakeCoordinator, hosts: MakeHost) -> None:
    host = hosts(fake.address)
    await host.start()
    lease = await fake.grant(stub(steps=6, save_every=2))
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded"
    assert lease.started.checkpoint == ""
    assert lease.steps() == [1, 2, 3, 4, 5, 6]
    assert 6 in lease.checkpoints and 6 in lease.copied()
    result = fake.folder(lease.outcome.succeeded.output.manifest_digest)
    assert json.loads(result["state.json"])["step"] == 6
    assert b"step 6 of 6" in lease.sources["stdout"]
    assert (host.root / "runs/r/ckpt/latest/state.json").is_file()


async def test_inputs_travel_and_what_is_missing_is_the_infrastructures_fault(
    fake: FakeCoordinator, hosts: MakeHost
) -> None:
    await hosts(fake.address).start()
    script = fake.put(b"import pathlib; pathlib.Path('out.txt').write_text(open('data/a.txt').read() + 'done')")
    data = fake.put(b"rows ")
    inputs = [runs_pb2.Input(path="main.py", digest=script), runs_pb2.Input(path="data/a.txt", digest=data)]
    spec = stub() | {"command": [sys.executable, "main.py"], "outputs": ["*.txt", "none/**"]}
    lease = await fake.grant(spec, inputs=inputs)
    await fake.until(lambda: lease.ended)
    assert fake.folder(lease.outcome.succeeded.output.manifest_digest) == {"out.txt": b"rows done"}
    assert "none/** matches no file" in lease.messages()

    lost = runs_pb2.Input(path="x", digest="sha256:" + "0" * 64)
    lease = await fake.grant(spec, SECOND, attempt=2, inputs=[lost])
    await fake.until(lambda: lease.ended)
    assert (lease.ended, lease.cause) == ("faulted", "INPUT_UNAVAILABLE")


async def test_a_run_that_will_not_fit_is_refused_before_anything_is_fetched(
    fake: FakeCoordinator, hosts: MakeHost
) -> None:
    """After the host has said that its disk is low, so that something may be freed for it."""
    host = hosts(fake.address)
    await host.start()
    large = runs_pb2.Input(path="x", digest=fake.put(b"not that large"), size=1 << 60)
    lease = await fake.grant(stub(), inputs=[large])
    await fake.until(lambda: lease.ended)
    assert (lease.ended, lease.cause) == ("faulted", "DISK_FULL")
    assert f"can be used on {host.root}" in lease.outcome.faulted.error.message
    assert "needs 1073741824.0 GiB" in lease.outcome.faulted.error.message
    assert fake.disk_low and not host.attempt("r").exists()


async def test_a_failure_is_a_value_with_its_cause(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """F1."""
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=9, save_every=2, fail_at=3))
    await fake.until(lambda: lease.ended)
    assert (lease.ended, lease.cause) == ("failed", "EXIT_CODE")
    assert "boom" in lease.outcome.failed.last_lines
    assert 2 in lease.copied()  # what it had saved is safe


async def test_a_stop_saves_and_completes(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=9, save_every=0, gate=gate.path))
    gate.let(3)
    await fake.until(lambda: lease.steps() == [1, 2, 3])
    await fake.stop(lease)
    await fake.until(lambda: lease.ended)
    assert lease.outcome.stopped.cause == pb.Stopped.REQUESTED
    assert lease.copied() == [3]


async def test_a_deaf_trainer_is_killed_after_its_grace(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=9, save_every=2, gate=gate.path, deaf=1))
    gate.let(3)
    await fake.until(lambda: lease.steps() == [1, 2, 3])
    await fake.stop(lease, grace=0.3)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "stopped"
    assert lease.copied() == [2]


async def test_a_lease_stopped_before_it_began_is_given_back(fake: FakeCoordinator, hosts: MakeHost) -> None:
    lease = await fake.grant(stub())
    await fake.stop(lease)
    await hosts(fake.address).start()
    await fake.until(lambda: lease.ended)
    assert lease.outcome.stopped.cause == pb.Stopped.REQUESTED
    assert not lease.starts


async def test_a_lost_lease_kills_its_trainer_and_keeps_its_bytes(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    host = hosts(fake.address)
    await host.start()
    lease = await fake.grant(stub(steps=9, save_every=2, gate=gate.path))
    gate.let(2)
    await fake.until(lambda: 2 in lease.copied())
    await fake.end(lease)
    await fake.until(lambda: fake.heartbeats and not fake.heartbeats[-1].held)
    assert not lease.ended
    assert (host.attempt("r") / "ckpt/step_00000002/state.json").is_file()
    assert not {"work", "staging"} & {path.name for path in host.attempt("r").iterdir()}
    assert host.trainer("r") not in host.processes()


async def test_what_a_host_that_went_down_has_left_is_removed(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    host = hosts(fake.address)
    await host.start()
    lease = await fake.grant(stub(steps=9, save_every=2, gate=gate.path))
    gate.let(3)
    await fake.until(lambda: 2 in lease.copied() and 3 in lease.steps())
    await host.vanish()
    shutil.rmtree(host.folder / "sock")  # it lay in memory
    await fake.end(lease)
    assert (host.attempt("r") / "work").is_dir()
    await host.start()
    await fake.until(lambda: len(fake.hellos) == 2)
    left = sorted(path.name for path in host.attempt("r").iterdir() if path.is_dir())
    assert left == ["ckpt", "output"] and (host.attempt("r") / "events.jsonl").stat().st_size


async def test_a_program_without_lines_gets_the_agents(fake: FakeCoordinator, hosts: MakeHost) -> None:
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=2, save_every=2, silent=1))
    await fake.until(lambda: lease.ended)
    named = [line for line in lease.lines("agent") if line["type"] == "checkpoint"]
    assert [(line["step"], line["path"]) for line in named] == [(2, "step_00000002")]
    assert 2 in lease.copied()


async def test_the_environment_is_an_allow_list(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """R6: nothing of the agent's own gets to a trainer."""
    await hosts(fake.address).start()
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    spec = stub() | {"command": [sys.executable, "-c", code], "env": {"MINE": "1"}}
    lease = await fake.grant(spec, pins={"model": "abc"})
    await fake.until(lambda: lease.ended)
    seen = json.loads(bytes(lease.sources["stdout"]))
    assert seen["MINE"] == "1" and seen["RELAY_RUN_ID"] == "r" and seen["RELAY_ATTEMPT"] == "1"
    assert json.loads(seen["RELAY_PINS"]) == {"model": "abc"}
    assert "RELAY_RESUME_FROM" not in seen and "RELAY_LEASE" not in seen
    assert not [name for name in seen if "SECRET" in name or "PYTEST" in name]


async def test_a_stalled_trainer_is_dumped_killed_and_failed(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """L5, F23."""
    host = hosts(fake.address)
    await host.start()
    lease = await fake.grant(stub(steps=9, save_every=2, gate=gate.path) | {"lifecycle": {"stall_after": "1s"}})
    gate.let(3)
    await fake.until(lambda: lease.ended)
    assert (lease.ended, lease.cause) == ("failed", "STALLED")
    assert "no progress" in lease.messages()
    assert (host.attempt("r") / "dump.json").is_file()
    assert lease.copied() == [2]


async def test_a_trainer_that_was_told_to_stop_does_not_stall(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """Its grace decides: a requested stop is no failure of the run."""
    host = hosts(fake.address)
    await host.start()
    spec = stub(steps=9, save_every=2, gate=gate.path, deaf=1) | {"lifecycle": {"stall_after": "2s"}}
    lease = await fake.grant(spec)
    gate.let(1)
    await fake.until(lambda: lease.steps() == [1])
    await fake.stop(lease, grace=3.0)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "stopped" and not (host.attempt("r") / "dump.json").exists()


async def trained(fake: FakeCoordinator) -> tuple[Lease, list[runs_pb2.Checkpoint]]:
    """A failed first attempt, and its checkpoints as the next one is offered them, newest first."""
    first = await fake.grant(stub(steps=9, save_every=2, fail_at=7))
    await fake.until(lambda: first.ended)
    return first, [first.checkpoints[step] for step in sorted(first.checkpoints, reverse=True)]


async def test_a_damaged_checkpoint_is_passed_over_with_its_reason(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """F16, S6: truncated on the host's disk, flipped in the store; the one before is used."""
    host = hosts(fake.address)
    await host.start()
    _, offered = await trained(fake)
    newest = offered[0]
    weights = host.attempt("r") / f"ckpt/step_{newest.step:08d}/weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    stored = fake.blobs[newest.parts[0].manifest_digest]
    digest = next(file["digest"] for file in json.loads(stored)["files"] if file["path"] == "weights.bin")
    if digest in fake.blobs:
        fake.blobs[digest] = bytes([whole[0] ^ 1]) + whole[1:]
    second = await fake.grant(stub(steps=9, save_every=2), SECOND, attempt=2, checkpoints=offered)
    await fake.until(lambda: second.ended)
    assert second.ended == "succeeded"
    assert second.started.checkpoint == offered[1].name
    [skipped] = second.started.skipped
    assert skipped.step == newest.step
    assert "999 bytes instead of 1000" in skipped.reason and "does not match its digest" in skipped.reason
    assert second.steps() == list(range(offered[1].step + 1, 10))


async def test_another_host_goes_on_from_the_store(fake: FakeCoordinator, hosts: MakeHost) -> None:
    first_host, second_host = hosts(fake.address), hosts(fake.address)
    await first_host.start()
    first, offered = await trained(fake)
    await fake.until(lambda: offered[0].step in first.copied())
    await first_host.end()
    await second_host.start()
    second = await fake.grant(stub(steps=9, save_every=2), SECOND, attempt=2, checkpoints=offered)
    await fake.until(lambda: second.ended)
    assert second.started.checkpoint == offered[0].name and not second.started.skipped
    assert second.steps() == list(range(offered[0].step + 1, 10))


async def test_a_store_that_is_away_holds_up_no_training(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    """F11: it delays the copy; of a backlog only the newest is kept."""
    fake.storing = False
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=9, save_every=2, gate=gate.path))
    gate.let(8)
    await fake.until(lambda: 8 in lease.checkpoints)
    assert lease.steps() == list(range(1, 9)) and not lease.copied()
    fake.storing = True
    gate.let(1)
    await fake.until(lambda: lease.ended)
    assert 8 in lease.copied() and len(lease.copied()) <= 2


async def test_a_trainer_killed_from_outside_is_reported(fake: FakeCoordinator, hosts: MakeHost, gate: Gate) -> None:
    host = hosts(fake.address)
    await host.start()
    lease = await fake.grant(stub(steps=9, gate=gate.path))
    gate.let(1)
    await fake.until(lambda: lease.steps() == [1])
    kill(host.trainer("r"))
    await fake.until(lambda: lease.ended)
    assert (lease.ended, lease.cause) == ("failed", "SIGNAL")
    assert signal.SIGKILL.name in lease.outcome.failed.error.message


async def test_a_checkpoint_that_is_refused_costs_only_itself(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """A program that ignores where it should resume writes steps that were before: no business of the whole host."""
    await hosts(fake.address).start()
    fake.refused_calls["RegisterCheckpoint"] = InvalidRequest("before the step where this attempt resumed")
    lease = await fake.grant(stub(steps=4, save_every=1, gate=gate.path))
    gate.let(2)
    await fake.until(lambda: "was refused: before the step" in lease.messages())
    fake.refused_calls = {"AddCopy": CheckpointUnknown()}
    gate.let(1)
    await fake.until(lambda: "stays on agents/a only" in lease.messages())
    fake.refused_calls.clear()
    gate.let(1)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and 4 in lease.copied()


async def test_what_has_gone_from_the_store_meanwhile_is_put_again_a_few_times(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    await hosts(fake.address).start()
    fake.refused_calls["AddCopy"] = InputMissing("the artifact store does not have sha256:0")
    lease = await fake.grant(stub(steps=2, save_every=1, gate=gate.path))
    gate.let(1)
    await fake.until(lambda: "stays on agents/a only" in lease.messages())
    assert fake.refused == 3
    fake.refused_calls.clear()
    gate.let(1)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and 2 in lease.copied()


async def test_what_a_foreign_coordinator_refuses_waits_for_the_right_one(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """F9: behind a wrong database nobody knows our leases; the id of the right deployment goes with each call."""
    await hosts(fake.address).start()
    fake.refused_calls["RegisterCheckpoint"] = DeploymentForeign()
    lease = await fake.grant(stub(steps=4, save_every=2, gate=gate.path))
    gate.let(2)
    await fake.until(lambda: fake.refused > 1 and lease.steps() == [1, 2])
    assert fake.meant == {fake.deployment}
    fake.refused_calls.clear()
    await fake.until(lambda: 2 in lease.copied())
    gate.let(2)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and "refused" not in lease.messages()


async def test_a_checkpoint_that_a_failover_lost_is_registered_again(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """F9: the welcome says what the coordinator has, of checkpoints and copies too."""
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=4, save_every=2, gate=gate.path))
    gate.let(2)
    await fake.until(lambda: 2 in lease.copied())
    for lost in (lease.checkpoints.clear, lambda: lease.checkpoints[2].parts[0].ClearField("copies")):
        lost()
        await renewed(fake)
        await fake.until(lambda: 2 in lease.copied())
    gate.let(2)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and "refused" not in lease.messages()


async def renewed(fake: FakeCoordinator) -> None:
    """The agent has a new session."""
    sessions, fake.answering = len(fake.hellos), False
    await fake.until(lambda: len(fake.hellos) > sessions)
    fake.answering = True


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_start_that_a_failover_lost_is_said_again(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate, restarted: bool
) -> None:
    """F9: with all that came after it, which waits for it; by an agent that was started since, too."""
    host = hosts(fake.address)
    await host.start()
    lease = await fake.grant(stub(steps=4, save_every=2, gate=gate.path))
    gate.let(2)
    await fake.until(lambda: 2 in lease.copied())
    if restarted:
        await host.end(signal.SIGKILL)
    lease.starts, lease.started = 0, pb.StartAttemptRequest()
    for lost in (lease.checkpoints, lease.sources):
        lost.clear()
    await (host.start() if restarted else renewed(fake))
    await fake.until(lambda: 2 in lease.copied() and lease.steps() == [1, 2])
    assert lease.starts == 1 and lease.started.lease == lease.name
    gate.let(2)
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded" and lease.starts == 1 and "refused" not in lease.messages()


async def test_a_start_that_is_refused_when_said_again_lets_the_lease_go(
    fake: FakeCoordinator, hosts: MakeHost, gate: Gate
) -> None:
    """Nothing of the attempt could count any more; the coordinator ends what its holder no longer lists."""
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=4, save_every=2, gate=gate.path))
    gate.let(1)
    await fake.until(lambda: lease.steps() == [1])
    lease.starts = 0
    fake.refused_calls["StartAttempt"] = InvalidRequest("the checkpoint is off the curve")
    await renewed(fake)
    await fake.until(lambda: not fake.heartbeats[-1].held)


async def test_a_start_that_is_refused_is_a_fault_of_this_attempt_only(fake: FakeCoordinator, hosts: MakeHost) -> None:
    await hosts(fake.address).start()
    fake.refused_calls["StartAttempt"] = InvalidRequest("the checkpoint is off the curve")
    lease = await fake.grant(stub())
    await fake.until(lambda: lease.ended)
    assert (lease.ended, lease.cause) == ("faulted", "START_REFUSED")


async def test_an_end_that_is_refused_lets_the_lease_go(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """The coordinator ends what its holder no longer lists."""
    host = hosts(fake.address)
    await host.start()
    fake.refused_calls["CompleteLease"] = InvalidRequest("no")
    await fake.grant(stub(steps=1))
    await fake.until(lambda: fake.refused == 2 and not fake.heartbeats[-1].held)
    assert host.agent is not None and host.agent.returncode is None


async def test_a_reply_that_overtakes_the_answer_to_an_end_takes_nothing_from_it(
    fake: FakeCoordinator, hosts: MakeHost
) -> None:
    """The lease is no longer desired as soon as its end is stored, which is not that it was lost."""
    host = hosts(fake.address)
    await host.start()
    fake.answers_ends_late = True
    lease = await fake.grant(stub(steps=1))
    await fake.until(lambda: lease.ended == "succeeded" and not fake.heartbeats[-1].held)
    shown = json.loads((host.attempt("r").parents[1] / "state.json").read_text())
    assert shown["status"] == "succeeded"

"""Commands that run concurrently, on a simulated and a real database alike: who waits, who wins, what is left."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from coordinator import scheduling
from coordinator.background.planner import plan_once
from coordinator.background.reaper import reap_once
from coordinator.commands import checkpoints, events, leases, runs, sessions
from coordinator.commands.events import ByteRange
from coordinator.database.postgres import Cluster
from coordinator.lifecycle import Cause, Outcome, RunState
from coordinator.values import (
    Completion,
    Copy,
    Cursor,
    Heartbeat,
    HeldPlace,
    Hello,
    NewCheckpoint,
    Readiness,
    Submission,
)
from relay.errors import LeaseLost
from relay.timing import DEFAULT
from tests.simulation.traces import Artifacts
from tests.simulation.twins import Act, Twins, twins

TTL = DEFAULT.ttl
SPEC = {"version": "relay/v1", "method": "command", "command": ["true"]}


@pytest.fixture
async def both(postgres_server: Cluster) -> AsyncIterator[Twins]:
    """A real and a simulated database, with two agents and a run."""
    async with twins(postgres_server) as made:
        for agent in ("a", "b"):
            await made.agree(hello(agent))
        await made.agree(submit("r"))
        yield made


def hello(agent: str, *held: HeldPlace, boot: str = "boot") -> Act:
    said = Hello(
        agent=agent, instance_id=f"{agent}-{boot}", boot_id=boot, deployment_id="", capability={}, labels={},
        slots=(0, 1), held=held, readiness=Readiness(),
    )  # fmt: skip
    return lambda db: sessions.open_session(db, said, DEFAULT)


def submit(name: str, *, request: str = "", policy: str = "continue", hosts: Sequence[str] = ()) -> Act:
    resources = {"allowed_hosts": list(hosts)} if hosts else {}
    spec = {**SPEC, "name": name, "lifecycle": {"on_disconnect": policy}, "resources": resources}
    submission = Submission(run_id=name, request_id=request, spec=spec, inputs=(), provenance={})
    return lambda db: runs.create(db, Artifacts(), submission, TTL)


def session(both: Twins, agent: str) -> UUID:
    found: UUID = both.storage.tables["agents"][agent]["session_id"]
    return found


def grant(both: Twins, run: str, agent: str, slot: int = 0) -> Act:
    planned = scheduling.Grant(run, (scheduling.Placement(agent, (slot,), session(both, agent)),))
    return lambda db: leases.grant(db, planned, TTL)


async def granted(both: Twins, run: str = "r", agent: str = "a") -> HeldPlace:
    """A lease that its agent lists."""
    await both.agree(grant(both, run, agent))
    held = HeldPlace(both.storage.rows("leases")[-1]["id"], 0, "running", (0,))
    await both.agree(beat(both, agent, held))
    return held


async def start_lease(both: Twins, run: str = "r", agent: str = "a") -> HeldPlace:
    """One whose attempt has said what it resumes from."""
    held = await granted(both, run, agent)
    await both.agree(lambda db: leases.start(db, held.lease_id, 0, None, ()))
    return held


def beat(both: Twins, agent: str, *held: HeldPlace) -> Act:
    pulse = Heartbeat(agent=agent, session_id=session(both, agent), held=held, readiness=Readiness())
    return lambda db: sessions.record_heartbeats(db, [pulse], TTL)


async def run_out(both: Twins, held: HeldPlace) -> None:
    await both.set("places", (held.lease_id, 0), expire_time=both.now - timedelta(seconds=1))


def complete(held: HeldPlace, outcome: Outcome = Outcome.SUCCEEDED, digest: str = "report") -> Act:
    report = Completion(node=0, outcome=outcome, digest=digest)
    return lambda db: leases.complete(db, held.lease_id, report)


def append(held: HeldPlace, offset: int, data: bytes, *, wait: bool) -> Act:
    stretch = ByteRange("r", held.lease_id, 0, "stdout", offset, data)
    return lambda db: events.append_ranges(db, [stretch], wait=wait, wall=lambda: 0.0)


def row(both: Twins, table: str, key: Any) -> Any:
    return both.storage.tables[table][key]


async def test_of_two_grants_of_one_run_the_second_waits_and_finds_it_granted(both: Twins) -> None:
    """S1."""
    met = await both.overlap(grant(both, "r", "a"), grant(both, "r", "b"))
    assert met.waited and met.second is None
    assert len(both.storage.rows("leases")) == 1


async def test_when_the_first_grant_is_given_up_the_second_is_made(both: Twins) -> None:
    met = await both.overlap(grant(both, "r", "a"), grant(both, "r", "b"), commit=False)
    assert met.waited and met.second is not None
    assert [place["agent"] for place in both.storage.rows("places")] == ["b"]


async def test_of_two_grants_of_one_slot_the_second_waits_and_fails(both: Twins) -> None:
    """S9: planned by two leaders for different runs."""
    await both.agree(submit("s"))
    met = await both.overlap(grant(both, "r", "a"), grant(both, "s", "a"))
    assert met.waited and met.second is None
    assert [lease["run_id"] for lease in both.storage.rows("leases")] == ["r"]


async def test_a_lapse_waits_for_a_renewal_and_finds_it(both: Twins) -> None:
    held = await granted(both)
    await run_out(both, held)
    met = await both.overlap(beat(both, "a", held), lambda db: leases.lapse(db, held.lease_id))
    assert met.waited and met.second is False


async def test_a_renewal_waits_for_a_lapse_and_takes_it_back(both: Twins) -> None:
    held = await granted(both)
    await run_out(both, held)
    met = await both.overlap(lambda db: leases.lapse(db, held.lease_id), beat(both, "a", held))
    assert met.first is True and met.waited
    assert row(both, "leases", held.lease_id)["state"] == "lapsed"  # the beat saw it as it was when it began
    await both.agree(beat(both, "a", held))
    assert row(both, "leases", held.lease_id)["state"] == "held"


async def test_a_completion_waits_for_a_grant_elsewhere_and_is_refused(both: Twins) -> None:
    """S2, F3: the old holder finishes while the run goes to another."""
    held = await granted(both)
    await run_out(both, held)
    await both.agree(lambda db: leases.lapse(db, held.lease_id))
    met = await both.overlap(grant(both, "r", "b"), complete(held))
    assert met.waited and isinstance(met.second, tuple) and met.second[0] == "LeaseLost"


async def test_a_grant_elsewhere_waits_for_a_completion_and_is_not_made(both: Twins) -> None:
    """S2, S8: nothing is left to do."""
    held = await granted(both)
    await run_out(both, held)
    await both.agree(lambda db: leases.lapse(db, held.lease_id))
    met = await both.overlap(complete(held), grant(both, "r", "b"))
    assert met.first == RunState.SUCCEEDED and met.waited and met.second is None


async def test_the_same_report_twice_at_once_has_one_answer(both: Twins) -> None:
    """F8, F17."""
    held = await granted(both)
    met = await both.overlap(complete(held), complete(held))
    assert met.waited and met.first == met.second == RunState.SUCCEEDED


async def test_events_of_a_run_that_is_locked_are_set_aside_or_wait(both: Twins) -> None:
    """S7."""
    held = await start_lease(both)
    pause: Act = lambda db: runs.pause(db, "r", "")  # noqa: E731
    aside = await both.overlap(pause, append(held, 0, b"abc", wait=False))
    assert (aside.waited, aside.second) == (False, [None])
    await both.agree(lambda db: runs.resume(db, "r"))
    waited = await both.overlap(pause, append(held, 0, b"abc", wait=True))
    assert (waited.waited, waited.second) == (True, [3])


async def test_events_wait_for_a_completion_and_are_refused(both: Twins) -> None:
    """S2, S7: the lease had not ended when they came."""
    held = await start_lease(both)
    met = await both.overlap(complete(held), append(held, 0, b"abc", wait=True))
    assert met.waited and met.second == [("LeaseLost", str(LeaseLost()))]


async def test_one_stretch_from_two_streams_at_once_is_stored_once(both: Twins) -> None:
    """S7, F17."""
    held = await start_lease(both)
    met = await both.overlap(append(held, 0, b"abc", wait=True), append(held, 0, b"abcde", wait=True))
    assert met.waited and (met.first, met.second) == ([3], [5])
    assert [chunk["data"] for chunk in both.storage.rows("log_chunks")] == [b"abc", b"de"]


async def test_a_request_that_is_being_carried_out_is_waited_for(both: Twins) -> None:
    """S9, F8."""
    met = await both.overlap(submit("s", request="once"), submit("s", request="once"))
    assert met.waited
    assert isinstance(met.second, tuple) and met.second[1][2] is False  # created by the first
    given_up = await both.overlap(submit("t", request="twice"), submit("t", request="twice"), commit=False)
    assert given_up.waited and isinstance(given_up.second, tuple) and given_up.second[1][2] is True


async def test_a_head_moves_once_when_two_nodes_register_at_once(both: Twins) -> None:
    """S5."""
    held = await granted(both)
    await both.agree(lambda db: leases.start(db, held.lease_id, 0, None, ()))
    new = NewCheckpoint(
        node=0, step=5, manifest_digest="d", size=1, files=1, required_cursors=(Cursor(0, "events", 0),)
    )  # fmt: skip
    register: Act = lambda db: checkpoints.register(db, held.lease_id, new)  # noqa: E731
    met = await both.overlap(register, register)
    assert met.waited and met.first == met.second
    assert len([entry for entry in both.storage.rows("run_events") if entry["kind"] == "checkpoint"]) == 1


async def test_the_next_host_is_offered_the_newest_and_those_that_it_can_reach(
    both: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S6."""
    monkeypatch.setattr("coordinator.store.checkpoints.OFFERED", 2)
    held = await granted(both)
    await both.agree(lambda db: leases.start(db, held.lease_id, 0, None, ()))
    for step, store in ((1, "relay"), (2, "host"), (3, "host"), (4, "host")):
        new = NewCheckpoint(
            node=0, step=step, manifest_digest="d", size=1, files=1, required_cursors=(Cursor(0, "events", 0),),
            copies=(Copy(store=store, uri=f"{store}://agents/a"),),
        )  # fmt: skip
        await both.agree(partial(checkpoints.register, lease_id=held.lease_id, new=new))
    await both.agree(lambda db: sessions.read_desired_state(db, ["a"]))
    await both.agree(complete(held, Outcome.FAULTED))
    await both.agree(lambda db: plan_once(db, DEFAULT))
    await both.agree(grant(both, "r", "b"))
    await both.agree(lambda db: sessions.read_desired_state(db, ["a", "b"]))
    desired = (await sessions.read_desired_state(both.simulated, ["b"]))["b"]  # type: ignore[arg-type]
    assert desired.leases[0].assignment is not None
    assert [view.step for view in desired.leases[0].assignment.checkpoints] == [4, 3, 1]
    both.simulated.said.clear()


async def test_a_newer_session_wins_over_a_heartbeat_that_is_under_way(both: Twins) -> None:
    """S9: what the older one lists is not renewed for it any more."""
    held = await granted(both)
    before = row(both, "places", (held.lease_id, 0))["session_id"]
    met = await both.overlap(hello("a", held, boot="boot"), beat(both, "a", held))
    assert met.waited
    assert row(both, "places", (held.lease_id, 0))["session_id"] == before != session(both, "a")


async def test_a_clone_is_refused_as_soon_as_the_first_beats_again(both: Twins) -> None:
    """F21."""
    await both.pass_time(2 * DEFAULT.heartbeat + 1)
    met = await both.overlap(beat(both, "a"), hello("a", boot="clone"))
    assert met.waited and isinstance(met.second, tuple) and met.second[0] == "IdentityInUse"


async def test_a_cancel_waits_for_a_stop_that_ends_by_itself(both: Twins) -> None:
    """S8."""
    held = await granted(both)
    await both.agree(lambda db: runs.pause(db, "r", ""))
    report = Completion(node=0, outcome=Outcome.STOPPED, digest="d", cause=Cause.REQUESTED)
    met = await both.overlap(lambda db: leases.complete(db, held.lease_id, report), lambda db: runs.cancel(db, "r", ""))
    assert met.waited and met.first == RunState.PAUSED
    assert row(both, "runs", "r")["state"] == "cancelled"


async def test_two_reapers_tick_one_after_the_other(both: Twins) -> None:
    tick: Act = lambda db: reap_once(db, DEFAULT, None, monotonic=lambda: 0.0)  # noqa: E731
    met = await both.overlap(tick, tick, which=1)
    assert met.waited and met.first == met.second


async def test_what_a_clone_does_not_list_is_neither_missed_nor_begun_again_under_stop(both: Twins) -> None:
    """S3, F21: the trainer of the first may still run."""
    await both.agree(submit("s", policy="stop"))
    await both.agree(grant(both, "s", "a"))
    await both.agree(grant(both, "r", "a", slot=1))
    await both.pass_time(2 * DEFAULT.heartbeat + 1)
    await both.agree(hello("a", boot="clone"))
    for lease in both.storage.rows("leases"):
        await both.agree(partial(leases.end_missing, lease_id=lease["id"]))
    await both.agree(beat(both, "a"))
    assert [lease["end_time"] is None for lease in both.storage.rows("leases")] == [True, False]


async def test_after_a_failover_nothing_is_wished_of_an_agent_until_it_says_hello(both: Twins) -> None:
    """F9: neither what it had listed nor what it had not heard of yet."""
    listed = await granted(both)
    await both.agree(submit("s"))
    await both.agree(grant(both, "s", "a", slot=1))
    await both.agree(lambda db: sessions.recognise_database(db, TTL))
    await both.set("deployment", True, timeline=both.storage.rows("deployment")[0]["timeline"] + 1)
    await both.agree(lambda db: sessions.recognise_database(db, TTL))
    assert session(both, "a") is None
    await both.agree(lambda db: sessions.read_desired_state(db, ["a", "b"]))
    await both.agree(hello("a", listed))
    await both.agree(beat(both, "a", listed))
    assert [lease["end_time"] is None for lease in both.storage.rows("leases")] == [True, False]


async def test_a_checkpoint_of_two_nodes_is_head_with_its_second_part(both: Twins) -> None:
    """S5."""
    seats = tuple(scheduling.Placement(agent, (0,), session(both, agent)) for agent in ("a", "b"))
    await both.agree(lambda db: leases.grant(db, scheduling.Grant("r", seats), TTL))
    lease_id = both.storage.rows("leases")[0]["id"]
    await both.agree(lambda db: leases.start(db, lease_id, 0, None, ()))
    heads = []
    for node in (0, 1):
        new = NewCheckpoint(
            node=node, step=5, manifest_digest="d", size=1, files=1, required_cursors=(Cursor(0, "events", 0),)
        )  # fmt: skip
        await both.agree(partial(checkpoints.register, lease_id=lease_id, new=new))
        heads.append(row(both, "runs", "r")["head_id"])
    assert heads == [None, both.storage.rows("checkpoints")[0]["id"]]


async def test_what_has_lapsed_is_not_found_expired_again(both: Twins) -> None:
    """Nor is it while the host that lapsed is one of several that are heard."""
    tick: Act = lambda db: reap_once(db, DEFAULT, None, monotonic=lambda: 0.0)  # noqa: E731
    held = await granted(both)
    await both.agree(tick)
    await run_out(both, held)
    await both.agree(tick)
    assert row(both, "leases", held.lease_id)["state"] == "lapsed"
    await both.agree(tick)


async def test_a_name_that_is_only_locked_keeps_no_submission_waiting(both: Twins) -> None:
    met = await both.overlap(lambda db: runs.resume(db, "r"), submit("r"))
    assert not met.waited and isinstance(met.second, tuple) and met.second[0] == "RunExists"


async def test_a_planner_explains_nothing_to_a_run_that_somebody_works_on(both: Twins) -> None:
    await both.agree(submit("s", hosts=["nowhere"]))
    met = await both.overlap(lambda db: runs.resume(db, "s"), lambda db: plan_once(db, DEFAULT))
    assert not met.waited and row(both, "runs", "s")["reason"] == ""
    await both.agree(lambda db: plan_once(db, DEFAULT))
    assert row(both, "runs", "s")["reason"]


async def test_a_name_that_is_written_keeps_a_submission_waiting(both: Twins) -> None:
    met = await both.overlap(lambda db: runs.pause(db, "r", ""), submit("r"))
    assert met.waited and isinstance(met.second, tuple) and met.second[0] == "RunExists"


async def test_what_the_older_session_says_last_is_not_heard(both: Twins) -> None:
    """S9: the agent's row has what the newer session reported."""
    held = await granted(both)
    before = beat(both, "a")
    met = await both.overlap(hello("a", held), before)
    assert met.waited and [each["lease"] for each in row(both, "agents", "a")["held"]] == [str(held.lease_id)]


async def test_a_lapsed_run_whose_holder_is_back_is_not_planned(both: Twins) -> None:
    """Its place is renewed, its lapse not yet taken back."""
    held = await granted(both)
    await run_out(both, held)
    await both.agree(lambda db: leases.lapse(db, held.lease_id))
    await both.set("places", (held.lease_id, 0), expire_time=both.now + timedelta(seconds=1))
    await both.agree(lambda db: plan_once(db, DEFAULT))
    assert len(both.storage.rows("leases")) == 1

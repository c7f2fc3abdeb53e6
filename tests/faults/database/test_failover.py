"""The database fails over and loses its last commits, is restored from a dump, or is another one altogether (F9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio

from relay.v1 import runs_pb2 as pb
from relay.v1 import runs_pb2_grpc
from relayctl.local.deployment import LocalCoordinator
from tests.end_to_end.fleet import Fleet, Kind, Watched
from tests.faults.database.clusters import DATABASE, USER, Server, Site, connected
from tests.faults.database.expectations import expect_undisturbed, is_refused, start_training, succeeded
from tests.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.rotating(2, of="faults of the database")]
TTL = 3.0  # of the test profile


@dataclass(slots=True)
class Pair:
    """A primary and its asynchronous standby."""

    site: Site
    standby: Server
    replication: Proxy

    async def cut(self) -> None:
        """The standby has all there is up to now, and gets nothing more: what is committed from now on will be lost."""
        await self.site.primary.caught_up()
        self.replication.blackhole()

    async def fail_over(self) -> None:
        """The primary is gone, and the standby takes its place."""
        await self.site.primary.crash()
        self.replication.cut()
        await self.standby.promote()
        self.site.turn_to(self.standby)


@pytest_asyncio.fixture(loop_scope="module")
async def pair(site: Site, fleet: Fleet) -> AsyncIterator[Pair]:
    """A standby, caught up; the winner stays."""
    async with Proxy([]) as replication:
        yield Pair(site, await site.standby(replication), replication)
        replication.heal()
    await site.remove_others()


async def test_what_an_attempt_said_is_said_again(fleet: Fleet, pair: Pair) -> None:
    """Lost: events, a checkpoint's registration and its copy. The attempt goes on, and each counts once (S5, S7)."""
    await fleet.host("a")
    run = await start_training(fleet, 3)
    await pair.cut()
    session = await pair.site.primary.query("SELECT session_id FROM agents")
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await run.checkpoint(4)
    await pair.fail_over()
    assert await pair.standby.query("SELECT max(step) FROM checkpoints") == 2
    await run.checkpoint(4)
    assert session != await pair.standby.query("SELECT session_id FROM agents")
    await expect_undisturbed(fleet, run, 8)


@asynccontextmanager
async def held_back(server: Server) -> AsyncIterator[None]:
    """No attempt's start is written for as long as the block lasts."""
    async with connected(server.url()) as connection:
        await connection.execute(
            """CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN RAISE LOG ''a start waits''; PERFORM pg_advisory_xact_lock(9); RETURN NEW; END';
               CREATE TRIGGER wait BEFORE UPDATE OF start_time ON leases FOR EACH ROW EXECUTE FUNCTION wait();
               SELECT pg_advisory_lock(9)"""
        )
        yield


async def test_a_start_that_was_lost_is_said_again(fleet: Fleet, pair: Pair) -> None:
    """Lost: StartAttempt, but not the grant before it. Its checkpoints count, what it resumed behind not (S6)."""
    host = await fleet.host("a")
    run = await start_training(fleet, 5)
    async with held_back(pair.site.primary):
        await host.vanish()
        await host.start()
        await pair.site.primary.wait_for_log("a start waits")
        await pair.cut()
    await fleet.conductor.allow(7)
    await fleet.conductor.until(lambda me: len(me.trainers) == 2)
    attempt = fleet.conductor.trainers[-1].attempt
    await fleet.conductor.reached(7, attempt=attempt)
    await run.checkpoint(6, attempt=attempt)
    await pair.fail_over()
    await pair.standby.query("DROP TRIGGER wait ON leases")
    assert await pair.standby.query("SELECT start_time IS NULL FROM leases WHERE attempt = $1", attempt)
    await run.checkpoint(6, attempt=attempt)
    await fleet.conductor.allow(8)
    await succeeded(run)
    assert [each.resumed_from for each in fleet.conductor.trainers] == [0, 4]
    assert len([event async for event in run.history() if event.kind == Kind.STARTED]) == 2
    await run.has_one_curve(8)


@pytest.mark.parametrize("policy", ["continue", "stop"])
async def test_a_grant_that_was_lost(fleet: Fleet, pair: Pair, policy: str) -> None:
    """Its holder is dropped, another lease is granted (S1, S2); of a `stop` run a TTL later, on a quiet host (S3)."""
    run = await fleet.submit_gated(steps=8, save_every=2, lifecycle={"on_disconnect": policy})
    await pair.cut()
    await fleet.host("a")
    await fleet.conductor.allow(3)
    await fleet.conductor.reached(3)
    await run.checkpoint(2)
    old = (await run.attempts())[-1]
    await pair.fail_over()
    assert await pair.standby.query("SELECT count(*) FROM leases") == 0
    granted = await run.until(lambda event: event.kind == Kind.GRANTED)
    withheld = await pair.standby.query("SELECT stop_grants_after FROM deployment")
    if policy == "stop":
        assert granted.time.ToDatetime(withheld.tzinfo) >= withheld
    await fleet.conductor.allow(8)
    await succeeded(run)
    new = (await run.attempts())[-1]
    assert new.name != old.name and await is_refused(fleet, old.name)
    first, second = fleet.conductor.trainers
    assert first.resumed_from == second.resumed_from == 0 and first.ended < second.began
    await run.has_one_curve(8)


async def test_a_completion_that_was_lost(fleet: Fleet, pair: Pair) -> None:
    """Its holder has forgotten the run, which resumes from the checkpoint that is known."""
    await fleet.host("a")
    run = await start_training(fleet, 3)
    await pair.cut()
    await fleet.conductor.allow(8)
    before = await run.ended()
    await pair.fail_over()
    ended = await succeeded(run)
    assert ended.output.manifest_digest == before.output.manifest_digest
    assert [each.resumed_from for each in fleet.conductor.trainers] == [0, 2]
    await run.has_one_curve(8)


async def test_a_submission_that_was_lost(fleet: Fleet, pair: Pair) -> None:
    """The run is unknown: its holder is dropped, and whoever submits it again gets a run of its own."""
    await fleet.host("a")
    await pair.cut()
    run = await start_training(fleet, 3)
    old = (await run.attempts())[-1]
    await pair.fail_over()
    assert await pair.standby.query("SELECT count(*) FROM runs") == 0
    again = await fleet.submit_gated(steps=8, save_every=2)
    await fleet.conductor.allow(8)
    await succeeded(again)
    new = (await again.attempts())[-1]
    assert new.name != old.name and await is_refused(fleet, old.name)
    assert len(fleet.conductor.trainers) == 2
    await again.has_one_curve(8)


async def synchronous(pair: Pair) -> None:
    """As docs/operations.md has it."""
    primary = pair.site.primary
    for setting in ("synchronous_standby_names = 'FIRST 1 (standby)'", "synchronous_commit = 'on'"):
        await primary.query(f"ALTER SYSTEM SET {setting}")
    await primary.query("SELECT pg_reload_conf()")
    await primary.wait_for_log('parameter "synchronous_commit" changed to "on"')
    pair.site.line.cut()  # whoever is connected now may not have heard of it


KNOWN = """SELECT max(step) FROM checkpoints c JOIN checkpoint_copies y ON y.checkpoint_id = c.id
           WHERE y.store = 'relay' AND c.complete"""


async def test_a_synchronous_standby_lacks_nothing(fleet: Fleet, pair: Pair) -> None:
    """What was acknowledged is there the moment it takes over (S7)."""
    await synchronous(pair)
    await fleet.host("a")
    run = await start_training(fleet, 4)
    await pair.fail_over()
    assert await pair.standby.query(KNOWN) == 4
    await expect_undisturbed(fleet, run, 8)


async def test_a_synchronous_standby_that_is_silent_holds_up_acknowledgements(fleet: Fleet, pair: Pair) -> None:
    """Trainers continue; nothing is acknowledged that the standby does not have (S7)."""
    await fleet.host("a")
    run = await start_training(fleet, 4)
    await synchronous(pair)
    await pair.cut()
    await fleet.conductor.allow(7)
    await fleet.conductor.reached(7)
    async with grpc.aio.insecure_channel(fleet.proxy.address) as channel:
        request = pb.CreateRunRequest(run_id="other", spec=(await run.get()).spec)
        with pytest.raises(grpc.aio.AioRpcError) as unanswered:
            await runs_pb2_grpc.RunsStub(channel).CreateRun(request, timeout=3)
    assert unanswered.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    assert await pair.site.primary.query(KNOWN) == 4
    await pair.fail_over()
    assert await pair.standby.query(KNOWN) == 4
    assert await pair.standby.query("SELECT array_agg(id) FROM runs") == ["r"]
    await expect_undisturbed(fleet, run, 8)


async def test_replicas_that_know_both_servers_find_the_primary(fleet: Fleet, pair: Pair) -> None:
    """By a URL with both addresses, as docs/operations.md has it: nothing is switched, and none is started again."""
    await fleet.submit_gated(steps=1, save_every=1)
    async with Proxy([pair.standby.socket]) as one, Proxy([pair.site.primary.socket]) as two:
        both = f"postgresql://{USER}@{one.address},{two.address}/{DATABASE}?target_session_attrs=primary"
        replica = LocalCoordinator(fleet.folder / "replica-3", "replica-3", both, "test")
        try:
            run = Watched("r", await replica.start())
            await run.until(lambda event: event.kind == Kind.CREATED)
            await pair.site.primary.caught_up()
            await pair.fail_over()
            await run.until(lambda event: event.kind == Kind.CREATED)
        finally:
            await replica.stop()

"""The database fails over and loses its last commits, is restored from a dump, or is another one altogether (F9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind
from tests.faults.database.clusters import Server, Site, connected
from tests.faults.database.expectations import refused, trains, undisturbed
from tests.proxy import Proxy

pytestmark = pytest.mark.slow
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
    await site.tidy()


async def test_what_an_attempt_said_is_said_again(fleet: Fleet, pair: Pair) -> None:
    """Lost: events, a checkpoint's registration and its copy. The attempt goes on, and each counts once (S5, S7)."""
    await fleet.host("a")
    run = await trains(fleet, 3)
    await pair.cut()
    session = await pair.site.primary.ask("SELECT session_id FROM agents")
    await fleet.conductor.allow(5)
    await fleet.conductor.reached(5)
    await run.checkpoint(4)
    await pair.fail_over()
    assert await pair.standby.ask("SELECT max(step) FROM checkpoints") == 2
    await run.checkpoint(4)
    assert session != await pair.standby.ask("SELECT session_id FROM agents")
    await undisturbed(fleet, run, 8)


@asynccontextmanager
async def held_back(server: Server) -> AsyncIterator[None]:
    """No attempt's start is written for as long as the block lasts."""
    async with connected(server.url()) as connection:
        await connection.execute(
            """CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN PERFORM pg_advisory_xact_lock(9); RETURN NEW; END';
               CREATE TRIGGER wait BEFORE UPDATE OF start_time ON leases FOR EACH ROW EXECUTE FUNCTION wait();
               SELECT pg_advisory_lock(9)"""
        )
        yield


@pytest.mark.parametrize("agent", ["lives", "restarts"])
async def test_a_start_that_was_lost_is_said_again(fleet: Fleet, pair: Pair, agent: str) -> None:
    """Lost: StartAttempt, but not the grant before it. Its checkpoints count, what it resumed behind not (S6)."""
    host = await fleet.host("a")
    run = await trains(fleet, 5)
    async with held_back(pair.site.primary):
        await host.vanish()
        await host.start()
        await run.until(lambda event: event.kind == Kind.GRANTED and event.attempt == 2)
        await pair.cut()
    await fleet.conductor.allow(7)
    await fleet.conductor.reached(7, attempt=2)
    await run.checkpoint(6, attempt=2)
    if agent == "restarts":
        await host.kill_agent()
    await pair.fail_over()
    await pair.standby.ask("DROP TRIGGER wait ON leases")
    assert not await pair.standby.ask("SELECT start_time FROM leases WHERE attempt = 2")
    if agent == "restarts":
        await host.start()
    await run.checkpoint(6, attempt=2)
    await fleet.conductor.allow(8)
    ended = await run.ended()
    assert (ended.state, ended.attempts) == (pb.Run.SUCCEEDED, 2)
    assert [(each.attempt, each.resumed_from) for each in fleet.conductor.trainers] == [(1, 0), (2, 4)]
    assert [event.attempt async for event in run.history() if event.kind == Kind.STARTED] == [1, 2]
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
    [old] = await run.attempts()
    await pair.fail_over()
    assert await pair.standby.ask("SELECT count(*) FROM leases") == 0
    granted = await run.until(lambda event: event.kind == Kind.GRANTED)
    withheld = await pair.standby.ask("SELECT stop_grants_after FROM deployment")
    if policy == "stop":
        assert granted.time.ToDatetime(withheld.tzinfo) >= withheld
    await fleet.conductor.allow(8)
    ended = await run.ended()
    assert (ended.state, ended.attempts) == (pb.Run.SUCCEEDED, 1)
    [new] = await run.attempts()
    assert new.name != old.name and await refused(fleet, old.name)
    assert [(each.attempt, each.resumed_from) for each in fleet.conductor.trainers] == [(1, 0), (1, 0)]
    await run.has_one_curve(8)


async def test_a_completion_that_was_lost(fleet: Fleet, pair: Pair) -> None:
    """Its holder has forgotten the run, which goes on from the checkpoint that is known."""
    await fleet.host("a")
    run = await trains(fleet, 3)
    await pair.cut()
    await fleet.conductor.allow(8)
    before = await run.ended()
    await pair.fail_over()
    ended = await run.ended()
    assert (ended.state, ended.attempts) == (pb.Run.SUCCEEDED, 2)
    assert ended.output.manifest_digest == before.output.manifest_digest
    assert [each.resumed_from for each in fleet.conductor.trainers] == [0, 2]
    await run.has_one_curve(8)


async def test_a_submission_that_was_lost(fleet: Fleet, pair: Pair) -> None:
    """The run is unknown: its holder is dropped, and whoever submits it again gets a run of its own."""
    await fleet.host("a")
    await pair.cut()
    run = await trains(fleet, 3)
    [old] = await run.attempts()
    await pair.fail_over()
    assert await pair.standby.ask("SELECT count(*) FROM runs") == 0
    again = await fleet.submit_gated(steps=8, save_every=2)
    await fleet.conductor.allow(8)
    assert (await again.ended()).state == pb.Run.SUCCEEDED
    [new] = await again.attempts()
    assert new.name != old.name and await refused(fleet, old.name)
    assert len(fleet.conductor.trainers) == 2
    await again.has_one_curve(8)

"""Carries out a plan of faults on a deployment of real processes, repairs it, and checks what was promised.

A fault is a block that breaks something and restores it at its end. Each waits for the thing that it breaks to be
whole, so no fault restores what another broke; apart from that they overlap freely.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format

from agent.shim.processes import Process, process
from benchmarks.lapses import moment
from relay.errors import RelayError
from relay.v1 import runs_pb2 as pb
from relayctl.client import submission
from relayctl.client.client import ENDED, RelayClient
from relayctl.local.deployment import DaemonFailed, LocalCoordinator, LocalHost
from tests.end_to_end.conductor import Trainer
from tests.end_to_end.fleet import Fleet, Watched
from tests.faults.database.clusters import Site
from tests.faults.schedule import STEPS, Fault, Plan, Strike
from tests.proxy import Proxy, Way

log = logging.getLogger(__name__)

RESTORED_WITHIN = 900.0  #: seconds for all of a plan: many faults wait for others to be over
ENDED_WITHIN = 240.0  #: seconds for every run to end once all is restored: retries back off for up to a minute
HOST = ("--slots", "6", "--leaving-budget", "5s")


@dataclass(slots=True)
class World:
    """What there is to break, and which of it is broken now."""

    fleet: Fleet
    site: Site
    client: RelayClient
    lines: list[Proxy]  #: one for each host
    runs: dict[str, int] = field(default_factory=dict)  #: steps by name
    struck: Counter[Fault] = field(default_factory=Counter)
    whole: dict[object, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    @property
    def hosts(self) -> list[LocalHost]:
        return list(self.fleet.hosts.values())

    @property
    def replicas(self) -> list[LocalCoordinator]:
        return self.fleet.deployment.replicas

    @property
    def trainers(self) -> list[Trainer]:
        """Those that live."""
        return [trainer for trainer in self.fleet.conductor.trainers if trainer.ended > now()]

    def alone(self, thing: str) -> asyncio.Lock:
        """Return the lock that is held from breaking a thing until it is restored."""
        return self.whole[thing]

    async def start_replica(self, replica: LocalCoordinator) -> None:
        """On a port of its own each time; again when its database was away just then, as a supervisor would."""
        while True:
            replica.address = ""
            async with self.alone("postgres"):
                with contextlib.suppress(DaemonFailed):
                    await replica.start()
                    return self.route()

    def route(self) -> None:
        """Lines lead to the replicas there are."""
        for line in (self.fleet.proxy, *self.lines):
            line.upstreams[:] = [each.address for each in self.replicas if each.alive and each.address]


#: Yields, once it is broken, whether there was anything to break.
Break = Callable[[World, Strike], AbstractAsyncContextManager[bool]]


def now() -> float:
    return asyncio.get_running_loop().time()


# --- processes that die ----------------------------------------------------------------------


def ending(how: Callable[[LocalHost], Awaitable[object]]) -> Break:
    """A host's agent, or all of it, ends in some way, and is started again."""

    @asynccontextmanager
    async def broken(world: World, strike: Strike) -> AsyncIterator[bool]:
        host = strike.of(world.hosts)
        async with world.alone(host.name):
            await how(host)
            yield True
            await host.start()

    return broken


@asynccontextmanager
async def shim_killed(world: World, strike: Strike) -> AsyncIterator[bool]:
    """Whose trainer dies with it."""
    _, trainer = await living(world, strike)
    send(trainer.parent, signal.SIGKILL)
    yield True


@asynccontextmanager
async def trainer_killed(world: World, strike: Strike) -> AsyncIterator[bool]:
    _, trainer = await living(world, strike)
    send(trainer.pid, signal.SIGKILL)
    yield True


async def living(world: World, strike: Strike) -> tuple[Trainer, Process]:
    """A trainer under its shim, waited for: the last step of the longest run is not allowed before all is restored."""
    while True:
        await world.fleet.conductor.until(lambda _: world.trainers)
        trainer = strike.of(world.trainers)
        found = process(trainer.pid)
        if found is not None and not found.dead and is_shim(found.parent):
            return trainer, found
        await world.fleet.conductor.ended(trainer)


def is_shim(pid: int) -> bool:
    try:
        return b"agent.shim.server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # gone
        return False


def replica_ended(how: signal.Signals) -> Break:
    @asynccontextmanager
    async def broken(world: World, strike: Strike) -> AsyncIterator[bool]:
        replica = strike.of(world.replicas)
        async with world.alone(replica.name):
            assert replica.daemon is not None
            await replica.daemon.end(how)
            world.route()
            yield True
            await world.start_replica(replica)

    return broken


def postgres_ended(how: Callable[[Site], Awaitable[None]]) -> Break:
    @asynccontextmanager
    async def broken(world: World, strike: Strike) -> AsyncIterator[bool]:
        async with world.alone("postgres"):
            await how(world.site)
            yield True
            await world.site.primary.start()

    return broken


# --- processes that stand still --------------------------------------------------------------


@asynccontextmanager
async def agent_frozen(world: World, strike: Strike) -> AsyncIterator[bool]:
    host = strike.of(world.hosts)
    async with world.alone(host.name):
        assert host.daemon is not None
        async with standing_still(host.daemon.process.pid):
            yield True


@asynccontextmanager
async def shim_frozen(world: World, strike: Strike) -> AsyncIterator[bool]:
    """It keeps no deadline meanwhile, which S3 does not ask of it."""
    trainer, found = await living(world, strike)
    trainer.frozen = True
    async with standing_still(found.parent):
        yield True


@asynccontextmanager
async def host_frozen(world: World, strike: Strike) -> AsyncIterator[bool]:
    host = strike.of(world.hosts)
    async with world.alone(host.name):
        with world.fleet.frozen(host):
            yield True


@asynccontextmanager
async def replica_frozen(world: World, strike: Strike) -> AsyncIterator[bool]:
    replica = strike.of(world.replicas)
    async with world.alone(replica.name):
        assert replica.daemon is not None
        async with standing_still(replica.daemon.process.pid):
            yield True


@asynccontextmanager
async def standing_still(pid: int) -> AsyncIterator[None]:
    send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pid, signal.SIGCONT)


def send(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


# --- lines -----------------------------------------------------------------------------------


def line(disturb: Callable[[Proxy], None]) -> Break:
    """A host's line to the coordinators, until it heals."""

    @asynccontextmanager
    async def broken(world: World, strike: Strike) -> AsyncIterator[bool]:
        found = strike.of(world.lines)
        async with world.alone(found.address):
            disturb(found)
            try:
                yield True
            finally:
                found.heal()

    return broken


@asynccontextmanager
async def database_cut(world: World, strike: Strike) -> AsyncIterator[bool]:
    world.site.line.cut()
    yield True


# --- operators -------------------------------------------------------------------------------


@asynccontextmanager
async def run_paused(world: World, strike: Strike) -> AsyncIterator[bool]:
    run = (await living(world, strike))[0].run
    async with world.alone(run):
        yield await taken(world.client.pause_run(run))
        await taken(world.client.resume_run(run))


@asynccontextmanager
async def run_cancelled(world: World, strike: Strike) -> AsyncIterator[bool]:
    """Cancel a run and submit it again under its name, so that it resumes from its head."""
    run = (await living(world, strike))[0].run
    async with world.alone(run):
        cancelled = await taken(world.client.cancel_run(run))
        yield cancelled
        if cancelled:
            await requeued(world, run)


async def taken(verb: Coroutine[Any, Any, pb.Run]) -> bool:
    """False when it was refused, as it is when the run has ended."""
    try:
        await verb
    except RelayError:
        return False
    return True


async def requeued(world: World, run: str) -> None:
    """Runs again if it was cancelled in the end."""
    async for _ in world.client.watch_run(run):
        pass
    found = await world.client.get_run(run)
    if found.state == pb.Run.CANCELLED:
        spec = json_format.MessageToDict(found.spec)
        await world.client.create_run(spec, inputs=found.inputs, run_id=run, resume=True)


BREAKS: dict[Fault, Break] = {
    Fault.AGENT_KILLED: ending(LocalHost.kill_agent),
    Fault.SHIM_KILLED: shim_killed,
    Fault.TRAINER_KILLED: trainer_killed,
    Fault.REPLICA_KILLED: replica_ended(signal.SIGKILL),
    Fault.POSTGRES_KILLED: postgres_ended(lambda site: site.primary.crash()),
    Fault.HOST_VANISHED: ending(LocalHost.vanish),
    Fault.HOST_LEFT: ending(LocalHost.leave),
    Fault.AGENT_DETACHED: ending(LocalHost.detach),
    Fault.REPLICA_ROLLED: replica_ended(signal.SIGTERM),
    Fault.POSTGRES_RESTARTED: postgres_ended(lambda site: site.primary.stop()),
    Fault.AGENT_FROZEN: agent_frozen,
    Fault.SHIM_FROZEN: shim_frozen,
    Fault.HOST_FROZEN: host_frozen,
    Fault.REPLICA_FROZEN: replica_frozen,
    Fault.LINE_CUT: line(Proxy.cut),
    Fault.LINE_SWALLOWS: line(Proxy.blackhole),
    Fault.LINE_SWALLOWS_ANSWERS: line(lambda proxy: proxy.blackhole(Way.DOWN)),
    Fault.LINE_DELAYS: line(lambda proxy: proxy.delay(0.4)),
    Fault.LINE_NARROW: line(lambda proxy: proxy.bandwidth(64_000)),
    Fault.LINE_HALF_CLOSED: line(Proxy.half_close),
    Fault.DATABASE_CUT: database_cut,
    Fault.RUN_PAUSED: run_paused,
    Fault.RUN_CANCELLED: run_cancelled,
}


# --- a round ---------------------------------------------------------------------------------


@asynccontextmanager
async def world_of(fleet: Fleet, site: Site, hosts: int) -> AsyncIterator[World]:
    """Hosts with a line each, and an operator with another."""
    upstreams = [replica.address for replica in fleet.deployment.replicas]
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(Proxy(upstreams)) for _ in range(hosts)]
        for number, way in enumerate(lines):
            await fleet.host(f"h{number}", *HOST, via=way.address)
        client = await stack.enter_async_context(RelayClient.connect(fleet.proxy.address, retry_timeout=ENDED_WITHIN))
        yield World(fleet, site, client, lines)


async def submit(world: World, runs: Sequence[tuple[int, str]]) -> None:
    """Runs with digests for losses, so that a step lost, doubled or done from elsewhere shows."""
    for number, (steps, policy) in enumerate(runs):
        name = f"r{number:02d}"
        spec = world.fleet.gated(steps, save_every=3) | {"lifecycle": {"on_disconnect": policy, "max_attempts": 1000}}
        path = world.fleet.folder / "submitter" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"version": "relay/v1", "name": name, **spec}))
        await submission.submit_run(world.client, await submission.prepare_run(path))
        world.runs[name] = steps


async def carry_out(world: World, plan: Plan) -> None:
    """Carry out all faults, and restore everything; raise TimeoutError when something cannot be restored."""
    began = now()
    async with asyncio.timeout(RESTORED_WITHIN), asyncio.TaskGroup() as group:
        group.create_task(pace(world, began, plan.seconds))
        for strike in plan.strikes:
            group.create_task(carry_out_one(world, strike, began))
    log.info("healed")
    await world.fleet.conductor.allow(STEPS)


async def carry_out_one(world: World, strike: Strike, began: float) -> None:
    await moment(began + strike.at - now())
    async with BREAKS[strike.fault](world, strike) as hit:
        log.info("%s %s, for %.1f s (at %.1f)", strike.fault, hit, strike.lasts, strike.at)
        world.struck[strike.fault] += hit
        await moment(strike.lasts)


async def pace(world: World, began: float, seconds: float) -> None:
    """Lets the trainers do step after step but the last one, so that the longest run takes this long."""
    for step in range(1, STEPS):
        await moment(began + seconds * step / STEPS - now())
        await world.fleet.conductor.allow(step)


async def promises_kept(world: World) -> None:
    """Every run ends as it should, each with one curve; nothing is left of it on any host (S1 to S10, L3, L6)."""
    try:
        async with asyncio.timeout(ENDED_WITHIN):
            await asyncio.gather(*(succeeded(world, run) for run in world.runs))
    except TimeoutError:
        states = {
            run.name: pb.Run.State.Name(run.state) for run in await world.client.list_runs() if run.state not in ENDED
        }
        raise AssertionError(f"not ended {ENDED_WITHIN:g} s after all was mended: {states}") from None
    await world.fleet.is_sound()
    for host in world.hosts:
        assert await host.leave() == 0, host.name
        assert not list(host.processes()), host.name


async def succeeded(world: World, name: str) -> None:
    run = Watched(name, world.fleet.proxy.address)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED, (name, ended)
    await run.has_one_curve(world.runs[name])

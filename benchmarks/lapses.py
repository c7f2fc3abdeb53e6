"""Leases under policy `stop` that lapse: when the holder's last process was dead, and when the lease was over (S3).

The trainer is `stubborn`: it ignores SIGTERM, and has children that left its session. The kernel and not the shim
reports that its tree is dead, by a connection that all of the tree share. Moments are of CLOCK_BOOTTIME. The database's
clock is this machine's, so its moments are converted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import asyncpg

from agent.shim_client.shims import Exit, Shim
from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient, shorten_name
from relayctl.local.deployment import LocalHost

STUBBORN = Path(__file__).parent / "stubborn.py"
BRANCHES, BUSY = 3, 8  #: processes of a tree that left its session; that compute, where the shim is starved


class Situation(StrEnum):
    """Why nobody but the shim can end the trainer in time."""

    FROZEN = "agent frozen"  #: SIGSTOP
    GONE = "agent gone"  #: SIGKILL
    STARVED = "frozen, shim starved"  #: busy processes in the shim's session, and it has the lowest nice value
    ORDINARY = "frozen, shim ordinary"  #: busy processes in its session, and no real-time priority to be had


@dataclass(frozen=True, slots=True)
class Lapse:
    """One lapse. Moments in seconds of CLOCK_BOOTTIME."""

    trusted: float  #: the shim's deadline
    began: float  #: it began to kill
    dead: float  #: the last process of the tree was
    expired: float  #: the place ran out in the database
    granted: float  #: the run was granted to another host

    @property
    def margin(self) -> float:
        """What was left before the lease was over; negative would be two holders."""
        return self.expired - self.dead


@dataclass(slots=True)
class Tree:
    """The processes of one attempt."""

    run: str
    attempt: int
    shim: int
    dead: asyncio.Future[float]


@dataclass(slots=True)
class Witness:
    """Hears from every tree once it stands, and from the kernel when nothing of it is left."""

    path: Path
    trees: list[Tree] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def stands(self, run: str, attempt: int = 1) -> Tree:
        """The tree of an attempt, waited for."""

        def find_tree() -> Tree | None:
            return next((tree for tree in self.trees if (tree.run, tree.attempt) == (run, attempt)), None)

        async with self.changed:
            tree = await self.changed.wait_for(find_tree)
        assert tree is not None
        return tree

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = json.loads(await reader.readline())
        tree = Tree(hello["run"], hello["attempt"], hello["shim"], asyncio.get_running_loop().create_future())
        async with self.changed:
            self.trees.append(tree)
            self.changed.notify_all()
        await reader.read()
        tree.dead.set_result(boottime())
        writer.close()


@asynccontextmanager
async def witnessing(path: Path) -> AsyncIterator[Witness]:
    """A witness at a socket; the trees it heard from are to be dead before it goes."""
    witness = Witness(path)
    server = await asyncio.start_unix_server(witness._hear, path)
    try:
        yield witness
    finally:
        server.close()


@dataclass(frozen=True, slots=True)
class Scene:
    """A host that will stop responding, a deployment with another one for its runs, and the witness."""

    client: RelayClient
    database_url: str
    victim: LocalHost
    witness: Witness

    async def lapses(self, situation: Situation, count: int, *, after: float = 0.0) -> list[Lapse]:
        """`count` runs on the victim lapse together, `after` seconds from when their trees stand."""
        busy = BUSY if situation in (Situation.STARVED, Situation.ORDINARY) else 0
        runs = [await self._submit(busy) for _ in range(count)]
        trees = [await self.witness.stands(run) for run in runs]
        for tree in trees:
            if situation is Situation.STARVED:
                os.setpriority(os.PRIO_PROCESS, tree.shim, 19)
            elif situation is Situation.ORDINARY:
                os.sched_setscheduler(tree.shim, os.SCHED_OTHER, os.sched_param(0))
        await moment(after)
        await self._silence(situation)
        for run, tree in zip(runs, trees, strict=True):
            await tree.dead
            assert (await self._ended(run)).state == pb.Run.SUCCEEDED  # elsewhere
        find_tree = [await self._lapse(run, tree) for run, tree in zip(runs, trees, strict=True)]
        await self._wake(situation)
        return find_tree

    async def _submit(self, busy: int) -> str:
        spec = {
            "version": "relay/v1",
            "method": "command",
            "command": [sys.executable, "-I", "-S", str(STUBBORN)],
            "env": {"WITNESS": str(self.witness.path), "BUSY": str(busy), "BRANCHES": str(BRANCHES)},
            "resources": {"gpus_per_node": 0, "prefer_hosts": [self.victim.name]},
            "lifecycle": {"on_disconnect": "stop"},
        }
        return shorten_name((await self.client.create_run(spec)).run.name)

    async def _silence(self, situation: Situation) -> None:
        assert self.victim.daemon is not None
        if situation is Situation.GONE:
            await self.victim.kill_agent()
        else:
            self.victim.daemon.process.send_signal(signal.SIGSTOP)

    async def _wake(self, situation: Situation) -> None:
        """Until the victim works again: it does a run."""
        assert self.victim.daemon is not None
        if situation is Situation.GONE:
            await self.victim.start()
        else:
            self.victim.daemon.process.send_signal(signal.SIGCONT)
        resources = {"gpus_per_node": 0, "allowed_hosts": [self.victim.name]}
        spec = {"version": "relay/v1", "method": "command", "command": ["true"], "resources": resources}
        await self._ended((await self.client.create_run(spec)).run.name)

    async def _ended(self, run: str) -> pb.Run:
        async for _ in self.client.watch_run(run):
            pass
        return await self.client.get_run(run)

    async def _lapse(self, run: str, tree: Tree) -> Lapse:
        lost, regained = await self.client.list_attempts(run)
        told = await _exit(self.victim, run, lost)
        assert told.trust is not None and told.kill_began is not None, told
        moments = await _moments(self.database_url, lost, regained)
        return Lapse(told.trust, told.kill_began, tree.dead.result(), *moments)


async def _exit(host: LocalHost, run: str, attempt: pb.Attempt) -> Exit:
    """How the trainer ended, as its shim tells."""
    folder = host.root / "runs" / run / "attempts" / f"{attempt.number}-{shorten_name(attempt.name)[:8]}"
    shim = await Shim.attach(Path(json.loads((folder / "shim.json").read_text())["socket"]))
    return await shim.wait()


async def _moments(url: str, lost: pb.Attempt, regained: pb.Attempt) -> tuple[float, float]:
    """When the first attempt's place ran out, and when the second was granted."""
    connection = await asyncpg.connect(url)
    try:
        expired: datetime = await connection.fetchval(
            "SELECT expire_time FROM places WHERE lease_id = $1", uuid.UUID(shorten_name(lost.name))
        )
    finally:
        await connection.close()
    ahead = time.time() - boottime()
    return expired.timestamp() - ahead, regained.grant_time.ToNanoseconds() / 1e9 - ahead


def boottime() -> float:
    """The clock of all deadlines on a host."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def moment(seconds: float) -> None:
    """That much later, by a timer of the loop."""
    loop = asyncio.get_running_loop()
    rung = loop.create_future()
    timer = loop.call_later(seconds, rung.set_result, None)
    try:
        await rung
    finally:
        timer.cancel()

"""One simulated deployment: two replicas, a few hosts, a user with some runs, and what the seed does to them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from coordinator.commands import runs
from coordinator.database.connections import Database, DatabaseAway
from coordinator.values import Submission
from relay.errors import BlobUnknown, RelayError
from relay.timing import TEST, LeaseTiming
from relay.v1 import agents_pb2 as pb
from tests.simulation.folder_store import FolderStore
from tests.simulation.host import Host, Place
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Network, Weather
from tests.simulation.replica import Replica
from tests.simulation.rules import Rules
from tests.simulation.store.database import Moment, SimulatedDatabase
from tests.simulation.store.storage import Changed, Storage
from tests.simulation.truth import Truth

log = logging.getLogger(__name__)
WATCH = 0.2  #: seconds between two looks at the control plane
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Order:
    """A run as its submitter wants it."""

    name: str
    policy: str
    steps: int
    every: int
    pace: float
    fails: float

    def submission(self) -> Submission:
        """The same request, however often it is sent."""
        env = {"SIM_STEPS": self.steps, "SIM_SAVE_EVERY": self.every, "SIM_PACE": self.pace, "SIM_FAILS": self.fails}
        spec = {
            "version": "relay/v1",
            "method": "command",
            "command": ["train"],
            "name": self.name,
            "env": {name: str(value) for name, value in env.items()},
            "lifecycle": {"on_disconnect": self.policy, "max_attempts": 1000},
            "checkpoint": {"keep": {"last": 1 + self.steps % 3}},
        }
        return Submission(run_id=self.name, request_id=f"submit-{self.name}", spec=spec, inputs=(), provenance={})


class _NoBlobs:
    """Runs here bring no inputs."""

    def stats(self, digests: Sequence[str], /) -> list[Any]:
        assert not digests
        return []

    def read(self, digest: str, limit: int, /) -> bytes:
        raise BlobUnknown(digest)


class World:
    """Everything there is. What it does to its parts are plain methods, for the faults of a seed to call."""

    def __init__(
        self, seed: int, folder: Path, timing: LeaseTiming = TEST, *, hosts: int = 0, orders: Sequence[Order] = ()
    ) -> None:
        """Take what is not given from the seed."""
        dice = Random(seed)
        self.random = Random(dice.getrandbits(64))
        self.timing = timing
        self.loop = VirtualLoop(Random(dice.getrandbits(64)), self._blocking)
        self.truth = Truth(margin=timing.kill + timing.margin + 0.1, evaluates=seed % 10 == 9)
        self.violations: list[str] = []
        self.network = Network(self.loop, Random(dice.getrandbits(64)))
        self.store = FolderStore(Random(dice.getrandbits(64)))
        self.answers_lost = 0.0  #: probability, of commits whose answer gets lost
        self.slowness = 0.0  #: seconds that each statement and commit takes, on average
        self.clock_was_set = False
        self.clock_steps = 0.0  #: seconds by which the database's clock was set
        self.storage = Storage(now=self.database_time, random=Random(dice.getrandbits(64)))
        self.outage_ended = -1e9  #: when the control plane was last back
        self._away_since: float | None = None
        self._steps_before = 0.0  #: of the database's clock, when it went away
        self.rules = Rules(self.storage, self.truth, self.report, timing.heartbeat, self._in_grace_period)
        self.truth.dropped, self.truth.slots_of = self.rules.dropped, self.rules.slots_of
        self.network.answered = self._answered
        self.commits = 0
        self._trace = hashlib.sha256()
        self.storage.observers.append(self._committed)
        self._names = itertools.count()
        self.replicas = [self._replica() for _ in range(2)]
        place = Place(self.loop, Random(dice.getrandbits(64)), self.network, self.truth, self.store, timing, folder)
        place.slots = self.random.choice([1, 2, 2])
        rho = timing.rho * 0.9
        self.hosts = [
            Host(place, name, folder / name, rate=1 + self.random.uniform(-rho, rho))
            for name in ("a", "b", "c")[: hosts or self.random.choice([2, 3, 3])]
        ]
        self.network.calm = Weather(latency=self.random.choice([0.004, 0.004, 0.12]) if not orders else 0.004)
        self.network.clear_up()
        self.room = place.slots * len(self.hosts)
        self.clones: list[Host] = []
        names = ("r0", "r1", "r2", "r3")[: self.random.choice([1, 2, 2, 3, 4])]
        self.orders = list(orders) or [self._order(name) for name in names]
        self.doing: list[asyncio.Task[None]] = []

    def _order(self, name: str) -> Order:
        steps, every = self.random.randint(8, 32), self.random.randint(2, 6)
        policy = self.random.choice(["continue", "stop"])
        pace = self.random.choice([0.3, 0.6])
        return Order(name, policy, steps, every, pace, self.random.choice([0.0, 0.0, 0.0, 0.02]))

    def _blocking(self) -> float:
        return self.random.uniform(0.0, 0.01)

    def report(self, name: str, text: str) -> None:
        """A property does not hold."""
        self.violations.append(f"{name}: {text} (at {self.loop.time():.2f})")

    def note(self, text: str) -> None:
        """Something happened."""
        self._trace.update(f"{self.loop.time():.6f} {text}\n".encode())
        log.debug("%.3f %s", self.loop.time(), text)

    @property
    def trace(self) -> str:
        """Digest of all that was noted."""
        return self._trace.hexdigest()

    def _committed(self, changes: Sequence[Changed]) -> None:
        self.commits += 1
        self.note(", ".join(f"{change.table} {change.key}" for change in changes))
        self.rules.committed(changes)

    def _answered(self, message: Any) -> None:
        if isinstance(message, pb.AppendEventsResponse) and message.HasField("acked_offset"):
            lease = message.lease.rpartition("/")[2]
            self.rules.acked(lease, message.node, message.source, message.acked_offset)

    def _in_grace_period(self) -> bool:
        """Whether the control plane is back for less than a TTL."""
        return self.loop.time() - self.outage_ended < self.timing.ttl

    def _watch_control_plane(self) -> None:
        """An outage is one when it is longer than what a missed tick or two may be."""
        now = self.loop.time()
        there = not self.storage.away and any(replica.process.running for replica in self.replicas)
        if there:
            hidden = self.clock_steps != self._steps_before  # a clock set meanwhile can make the gap look like none
            if self._away_since is not None and now - self._away_since > 3 * self.timing.heartbeat and not hidden:
                self.outage_ended = now - WATCH
            self._away_since = None
        elif self._away_since is None:
            self._away_since, self._steps_before = now, self.clock_steps
        self.loop.call_later(WATCH, self._watch_control_plane, context=Context())

    # The control plane

    def database_time(self) -> datetime:
        """The database's clock."""
        return EPOCH + timedelta(seconds=self.loop.time() + self.clock_steps)

    async def _reach(self, moment: Moment) -> None:
        """Let a statement or a commit take its time; now and then a commit's client does not learn its result (F8)."""
        if self.loop.over:
            raise DatabaseAway("over")
        if self.slowness:
            await asyncio.sleep(self.random.expovariate(1 / self.slowness))
        elif self.random.random() < 0.15:  # the rest is so near that nothing comes between
            await asyncio.sleep(self.random.expovariate(500.0))
        if moment is Moment.COMMITTED and self.answers_lost and self.random.random() < self.answers_lost:
            raise DatabaseAway("the connection broke after the commit")

    def _replica(self) -> Replica:
        database = SimulatedDatabase(self.storage, pause=self._reach)
        replica = Replica(self.loop, f"replica-{next(self._names)}", database, self.timing)
        self.network.servers.append(replica)
        return replica

    def kill_replica(self, index: int) -> None:
        """SIGKILL."""
        replica = self.replicas[index]
        replica.kill()
        self.network.servers = [server for server in self.network.servers if server is not replica]

    def start_replica(self, index: int) -> None:
        """Another process in its place."""
        if not self.replicas[index].process.alive:
            self.replicas[index] = self._replica()

    # The operator

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Something of the operator's."""
        self.doing.append(self.loop.create_task(work, context=Context()))

    async def call_until_answered(self, call: Callable[[Database], Coroutine[Any, Any, object]]) -> None:
        """As a client does: tried again, on any replica, until there is an answer."""
        while True:
            serving = [replica for replica in self.replicas if replica.process.running]
            try:
                if serving:
                    await call(self.random.choice(serving).db)
                    return
            except DatabaseAway:
                pass
            except RelayError:
                return
            await asyncio.sleep(0.5)

    async def submit(self, order: Order) -> None:
        """Creates the run, once."""
        await self.call_until_answered(lambda db: runs.create(db, _NoBlobs(), order.submission(), self.timing.ttl))

    async def submit_again(self, order: Order) -> None:
        """The same request: it may have been lost with a database, or paused."""
        await self.submit(order)
        await self.steer(runs.resume, order.name)

    async def resubmit(self, order: Order, number: int) -> None:
        """Another request for the same run, as one-shot clients make."""
        again = replace(order.submission(), request_id=f"again-{number}-{order.name}", resume=True)
        await self.call_until_answered(lambda db: runs.create(db, _NoBlobs(), again, self.timing.ttl))

    async def steer(self, verb: Callable[..., Coroutine[Any, Any, object]], name: str, *words: str) -> None:
        """Pause, resume or cancel."""
        await self.call_until_answered(lambda db: verb(db, name, *words))

    # All of it

    def machines(self) -> list[Host]:
        """Clones too."""
        return [*self.hosts, *self.clones]

    def start(self) -> None:
        """Hosts come up, and the operator submits runs."""
        self.loop.call_soon(self.network.watch, context=Context())
        self.loop.call_soon(self._watch_control_plane, context=Context())
        for host in self.hosts:
            host.start_agent()
        for order in self.orders:
            self.do(self._submit_later(order))

    async def _submit_later(self, order: Order) -> None:
        await asyncio.sleep(self.random.uniform(0.0, 2.0))
        await self.submit(order)

    def close(self) -> None:
        """Stop everything."""
        self.loop.wind_up()

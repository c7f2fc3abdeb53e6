"""Everything at once, in any order, on a real database: what must hold afterwards holds after each step.

Operators, planner, reaper and two agents act at random (by a seed) and at the same time, agents also with leases that
are long over. Nothing here may deadlock: a lock taken out of order would come out as DatabaseAway.
"""

import asyncio
import itertools
import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from coordinator.artifacts.folder import FolderArtifacts
from coordinator.background.planner import plan_once
from coordinator.commands import checkpoints, leases, runs, sessions
from coordinator.database.connections import Database
from coordinator.lifecycle import Cause, Outcome
from coordinator.store import checkpoints as stored_checkpoints
from coordinator.values import Completion, Cursor, Heartbeat, HeldPlace, Hello, NewCheckpoint, Readiness, Submission
from relay.errors import IdentityInUse, RelayError
from relay.timing import DEFAULT
from tests.history import curve
from tests.history.checker import violations
from tests.history.record import recorded

STEPS, TOGETHER = 40, 4
SPEC = {"version": "relay/v1", "method": "command", "command": ["true"], "lifecycle": {"max_attempts": 1000}}


@dataclass
class Chaos:
    """The actors, and what they know."""

    db: Database
    blobs: FolderArtifacts
    dice: random.Random
    runs: list[str] = field(default_factory=list)
    leases: list[UUID] = field(default_factory=list)
    held: dict[str, dict[UUID, HeldPlace]] = field(default_factory=lambda: {"a": {}, "b": {}})
    session: dict[str, UUID] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    written: int = 0

    async def submit(self) -> None:
        name = f"r{len(self.runs)}"
        self.runs.append(name)
        policy = self.dice.choice(["continue", "stop"])
        spec = {**SPEC, "name": name, "lifecycle": {"max_attempts": 1000, "on_disconnect": policy}}
        submission = Submission(run_id=name, request_id=name, spec=spec, inputs=(), provenance={})
        await asyncio.gather(*(runs.create(self.db, self.blobs, submission, 30.0) for _ in range(2)))

    async def hello(self, agent: str) -> None:
        if self.dice.random() < 0.5:
            self.held[agent].clear()
        boot = self.dice.choice(["boot-1", "boot-1", "boot-2"])
        hello = Hello(
            agent=agent, instance_id=uuid.uuid4().hex, boot_id=boot, deployment_id="", capability={"memory_bytes": "1"},
            labels={}, slots=(0, 1), held=tuple(self.held[agent].values()), readiness=Readiness(),
        )  # fmt: skip
        async with self.db.connection() as conn:
            await conn.execute("UPDATE agents SET heartbeat_time = NULL, connect_time = NULL WHERE name = $1", agent)
        try:
            self.session[agent] = (await sessions.open_session(self.db, hello, DEFAULT)).session_id
        except IdentityInUse:  # a heartbeat came between
            return
        await self.send_heartbeat(agent)

    async def send_heartbeat(self, agent: str) -> None:
        """Start what is desired and drop what is not; now and then forget something, or list what is over."""
        session = self.session[agent]
        held = dict(self.held[agent])
        if held and self.dice.random() < 0.1:
            held.pop(self.dice.choice(list(held)))
        pulse = Heartbeat(agent=agent, session_id=session, held=tuple(held.values()), readiness=Readiness())
        known = self.versions.get(agent, 0)
        desired = (await sessions.record_heartbeats(self.db, [pulse], 30.0))[agent]
        assert desired.version >= known  # it was read after the heartbeat
        if desired.session_id != session or desired.version < self.versions.get(agent, 0):  # overtaken by another reply
            return
        self.versions[agent] = desired.version
        self.held[agent] = {w.lease_id: HeldPlace(w.lease_id, w.node, "running", w.slots) for w in desired.leases}
        self.leases += [w.lease_id for w in desired.leases if w.lease_id not in self.leases]

    async def expire(self) -> None:
        lease = self.dice.choice(self.leases)
        async with self.db.connection() as conn:
            await conn.execute(
                "UPDATE places SET expire_time = clock_timestamp() - interval '1 s' WHERE lease_id = $1", lease
            )
        await leases.lapse(self.db, lease)

    async def verb(self) -> None:
        name = self.dice.choice(self.runs)
        act: Awaitable[None] = self.dice.choice(
            [lambda: runs.pause(self.db, name, ""), lambda: runs.resume(self.db, name)] * 3
            + [lambda: runs.cancel(self.db, name, "")]
        )()
        await capture_refusal(act)

    async def complete(self) -> None:
        outcome = self.dice.choice([Outcome.STOPPED, Outcome.FAULTED, Outcome.FAILED, Outcome.SUCCEEDED])
        report = Completion(node=0, outcome=outcome, digest=uuid.uuid4().hex, cause=self.dice.choice(list(Cause)))
        await self.write(lambda lease: leases.complete(self.db, lease, report))

    async def save(self) -> None:
        step = self.dice.randrange(100)
        new = NewCheckpoint(
            node=0, step=step, manifest_digest="d", size=1, files=1, required_cursors=(Cursor(0, "events", 0),)
        )  # fmt: skip
        await self.write(lambda lease: checkpoints.register(self.db, lease, new))

    async def start(self) -> None:
        async def begin(lease: UUID) -> None:
            async with self.db.connection() as conn:
                run = await conn.fetchval("SELECT run_id FROM leases WHERE id = $1", lease)
                offered = await stored_checkpoints.list_resumable(conn, run)
            chosen = self.dice.choice([*offered, None])
            await leases.start(self.db, lease, 0, chosen.id if chosen else None, ())

        await self.write(begin)

    async def write(self, act: Callable[[UUID], Awaitable[object]]) -> None:
        """A write of a lease that may be over: then it must be refused, and change nothing (S2)."""
        lease = self.dice.choice(self.leases[-6:])
        async with self.db.connection() as conn:
            over = await conn.fetchval("SELECT end_time IS NOT NULL FROM leases WHERE id = $1", lease)
        error = await capture_refusal(act(lease))
        assert not over or (error is not None and error.reason == "LEASE_LOST")
        self.written += error is None

    async def requeue(self) -> None:
        async with self.db.connection() as conn:
            await conn.execute("UPDATE runs SET eligible_time = NULL")

    def one(self) -> Awaitable[object]:
        """Something that happens."""
        agent = self.dice.choice("ab")
        acts: list[Callable[[], Awaitable[object]]] = [lambda: self.send_heartbeat(agent)] * 4 + [
            self.requeue, lambda: plan_once(self.db, DEFAULT), lambda: plan_once(self.db, DEFAULT), self.submit
        ]  # fmt: skip
        acts += [lambda: self.hello(agent)] if self.dice.random() < 0.3 else []
        if self.leases:
            acts += [self.expire, self.complete, self.save, self.save, self.start, self.start]
        return self.dice.choice([*acts, self.verb])() if self.runs else self.submit()


async def capture_refusal(act: Awaitable[object]) -> RelayError | None:
    """The domain error it was refused with."""
    try:
        await act
    except RelayError as error:
        return error
    return None


#: Nobody here skips a checkpoint, or streams events: attempts begin where the dice say.
AT_WILL = frozenset({curve.attempts_resume_from_the_newest})


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_at_once_the_rules_hold(
    db: Database, database_url: str, tmp_path: Path, seed: int
) -> None:
    """S1, S2, S5, S6, S8, S9, F17."""
    chaos = Chaos(db, FolderArtifacts(tmp_path, limit=1 << 30), random.Random(seed))
    await chaos.hello("a")
    await chaos.hello("b")
    for step in itertools.count():
        if step >= STEPS and chaos.written > 5 and len(chaos.leases) > 5:  # who is served first decides how soon
            break
        await asyncio.gather(*(chaos.one() for _ in range(TOGETHER)))
        found = violations(await recorded(database_url), but=AT_WILL)
        assert not found, f"step {step}: {', '.join(map(str, found))}"

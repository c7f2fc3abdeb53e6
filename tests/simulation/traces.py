"""What users, planners, reapers and agents do, drawn at random by a seed, in any order, one step at a time."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid5

from coordinator import scheduling
from coordinator.artifacts.base import BlobStat
from coordinator.background.planner import plan_once
from coordinator.background.reaper import ReaperLook, reap_once
from coordinator.commands import checkpoints, events, leases, retention, runs, sessions
from coordinator.commands.events import ByteRange
from coordinator.lifecycle import Cause, Outcome
from coordinator.store import deployment as deployment_store
from coordinator.store import retention as retention_store
from coordinator.values import (
    Completion,
    Copy,
    Cursor,
    Heartbeat,
    HeldPlace,
    Hello,
    NewCheckpoint,
    Readiness,
    Skipped,
    Submission,
)
from relay.errors import BlobUnknown
from relay.timing import DEFAULT
from tests.simulation.store.storage import Storage
from tests.simulation.store.tables import Row
from tests.simulation.twins import Act

TTL = DEFAULT.ttl
_KEEPS: list[dict[str, Any]] = [{}, {"last": 1}, {"last": 1, "best": 1, "metric": "loss", "max_age": "2m"}]
AGENTS = ("a", "b", "c", "d")
NOBODY = UUID(int=0)


class Artifacts:
    """Whatever is asked for is there."""

    def stats(self, digests: Sequence[str], /) -> list[BlobStat]:
        """All whole."""
        return [BlobStat(digest, True, 0) for digest in digests]

    def read(self, digest: str, limit: int, /) -> bytes:
        """Not what is in them."""
        raise BlobUnknown(digest)


@dataclass
class Trace:
    """Draws acts, of what the storage has."""

    dice: Random
    storage: Storage
    looked: ReaperLook | None = None
    reports: dict[UUID, Completion] = field(default_factory=dict)

    def act(self) -> tuple[str, Act]:
        """The next, and what it is called."""
        names = [name for name, weight in _WEIGHTS.items() for _ in range(weight)]
        while True:
            name = self.dice.choice(names)
            act: Act | None = getattr(self, name)()
            if act is not None:
                return name, act

    # drawing

    def rows(self, table: str) -> list[Row]:
        """All that there are."""
        return self.storage.rows(table)

    def one(self, table: str, *, newest: int = 8) -> Row | None:
        """One of the newest."""
        rows = self.rows(table)[-newest:]
        return self.dice.choice(rows) if rows else None

    def chance(self, probability: float) -> bool:
        """True now and then."""
        return self.dice.random() < probability

    def lease_id(self, *, started: bool = False) -> UUID | None:
        """Of a lease, rarely of none; most have not ended."""
        unended = [row for row in self.rows("leases") if row["end_time"] is None]
        if started and self.chance(0.9):
            unended = [row for row in unended if row["start_time"]]
        row = self.dice.choice(unended) if unended and self.chance(0.8) else self.one("leases")
        return NOBODY if self.chance(0.02) else row["id"] if row else None

    def held(self, agent: str) -> tuple[HeldPlace, ...]:
        """What the agent lists: mostly what it should."""
        places = [row for row in self.rows("places") if row["agent"] == agent and row["end_time"] is None]
        if places and self.chance(0.1):
            places.remove(self.dice.choice(places))
        if self.chance(0.1) and (other := self.one("places")):
            places.append(other)
        return tuple(HeldPlace(row["lease_id"], row["node"], "running", tuple(row["slots"])) for row in places)

    # operators

    def submit(self) -> Act:
        """A new run, or a known one again in one way or another."""
        number = len(self.rows("runs"))
        known = number and self.chance(0.3)
        name = f"r{self.dice.randrange(number) if known else number}"
        spec = {
            "version": "relay/v1", "method": "command", "command": ["true"] * self.dice.randint(1, 2 if known else 1),
            "name": name, "labels": {"team": "x"}, "priority": self.dice.randrange(2),
            "lifecycle": {"max_attempts": 3, "on_disconnect": self.dice.choice(["continue", "continue", "stop"])},
            "checkpoint": {"keep": self.dice.choice(_KEEPS)},
        }  # fmt: skip
        entry = {"path": "data.txt", "digest": "sha256:" + "0" * 64, "size": 1, "executable": False}
        submission = Submission(
            run_id=name,
            request_id=self.dice.choice(["", f"request-{name}"]),
            spec=spec,
            inputs=self.dice.choice([(), (entry,)]),
            provenance={"user": "somebody"},
            resume=self.chance(0.5),
        )
        return lambda db: runs.create(db, Artifacts(), submission, TTL)

    def verb(self) -> Act | None:
        """A user's request."""
        run = self.one("runs")
        if run is None:
            return None
        name, reason = run["id"], self.dice.choice(["", "enough"])
        return self.dice.choice([
            lambda db: runs.pause(db, name, reason),
            lambda db: runs.resume(db, name),
            lambda db: runs.resume(db, name),
            lambda db: runs.cancel(db, name, reason),
        ])  # fmt: skip

    # agents

    def hello(self) -> Act:
        """An agent under a name: the same process, another, or a clone."""
        agent = self.dice.choice(AGENTS)
        hello = Hello(
            agent=agent,
            instance_id=f"instance-{len(self.rows('leases')) // 4 - self.dice.randrange(2)}",
            boot_id="boot-2" if self.chance(0.2) else "boot-1",
            deployment_id="elsewhere" if self.chance(0.03) else "",
            capability={"memory_bytes": "1", "gpus": [], "ratio": float("nan")},
            labels={"zone": "x"},
            slots=(0, 1),
            held=self.held(agent),
            readiness=Readiness(leaving=self.chance(0.05)),
        )

        async def act(db: Any) -> object:
            opened = await sessions.open_session(db, hello, DEFAULT)
            return opened, await sessions.read_lease_records(db, hello)

        return act

    def goodbye(self) -> Act | None:
        """A stream ends, perhaps one that was replaced."""
        agent = self.one("agents")
        session = agent["session_id"] if agent else None
        if agent is None or session is None:
            return None
        name, session_id = agent["name"], session if self.chance(0.8) else NOBODY
        return lambda db: sessions.close_session(db, name, session_id)

    def beat(self) -> Act | None:
        """Heartbeats of some agents, in one batch."""
        live = [row for row in self.rows("agents") if row["session_id"] is not None]
        if not live:
            return None
        heartbeats = [self.pulse(row) for row in self.dice.sample(live, self.dice.randint(1, len(live)))]
        return lambda db: sessions.record_heartbeats(db, heartbeats, TTL)

    def pulse(self, agent: Row) -> Heartbeat:
        """Of the agent's session, or one that it had."""
        return Heartbeat(
            agent=agent["name"],
            session_id=agent["session_id"] if self.chance(0.93) else NOBODY,
            held=self.held(agent["name"]),
            readiness=Readiness(ready=self.chance(0.95), reason="tired" if self.chance(0.1) else ""),
            readings={"disk_free_bytes": "7"} if self.chance(0.3) else None,
        )

    def start(self) -> Act | None:
        """An attempt's first write."""
        lease_id, checkpoint = self.lease_id(), self.one("checkpoints")
        if lease_id is None:
            return None
        lease = self.storage.tables["leases"].get(lease_id)
        of_run = [row for row in self.rows("checkpoints") if lease and row["run_id"] == lease["run_id"]]
        checkpoint = self.dice.choice(of_run) if of_run and self.chance(0.9) else checkpoint
        chosen = checkpoint["id"] if checkpoint and self.chance(0.7) else None
        skipped = (Skipped(checkpoint["id"], checkpoint["step"], "damaged"),) if checkpoint and self.chance(0.2) else ()
        node = 1 if self.chance(0.05) else 0
        return lambda db: leases.start(db, lease_id, node, chosen, skipped)

    def append(self) -> Act | None:
        """Byte ranges of some sources."""
        stretches: list[ByteRange] = []
        for _ in range(self.dice.randint(1, 3)):
            lease_id = self.lease_id(started=True)
            if lease_id is None:
                return None
            stretches.append(self.stretch(lease_id))
        wait, time = self.chance(0.5), self.storage.now().timestamp()
        return lambda db: events.append_ranges(db, stretches, wait=wait, wall=lambda: time)

    def stretch(self, lease_id: UUID) -> ByteRange:
        """From where its source is stored, mostly."""
        source, node = self.dice.choice(["events", "events", "agent", "stdout"]), 1 if self.chance(0.1) else 0
        cursor = self.storage.tables["cursors"].get((lease_id, node, source))
        offset = max(0, (cursor["offset_bytes"] if cursor else 0) + self.dice.choice([0] * 12 + [-5, 7]))
        lease = self.storage.tables["leases"].get(lease_id)
        data = b"".join(json.dumps(self.line()).encode() + b"\n" for _ in range(self.dice.randint(0, 3)))
        run_id = lease["run_id"] if lease and self.chance(0.97) else "r0"
        return ByteRange(run_id, lease_id, node, source, offset, data, skipped_bytes=9 if self.chance(0.05) else 0)

    def line(self) -> object:
        """What a trainer writes."""
        step = self.dice.randrange(100)
        saved = self.one("checkpoints")
        evaluated = saved["step"] if saved and self.chance(0.6) else 0
        return self.dice.choice([
            {"type": "metric", "step": step, "values": {"loss": self.dice.choice([0.5, "NaN"]), f"m{step % 3}": step}},
            {"type": "metric", "step": evaluated, "values": {"eval_loss": self.dice.choice([0.5, "NaN"]), "eval_": 1}},
            {"type": "progress", "step": step, "total": 100, "epoch": 0.5},
            {"type": "message", "level": "warning", "text": "odd \x00"},
            {"type": "pin", "name": "model", "value": f"v{step % 2}"},
            {"type": "resume", "step": step, "fidelity": "close", "reasons": [f"odd \x00 {step}"]},
            {"type": "checkpoint", "step": step, "path": "p"},
            {"type": "sample", "step": step, "kind": "prompt", "prompt": "\x00", "completion": "", "rewards": {"r": 1}},
            {"type": "nonsense"},
        ])  # fmt: skip

    def register(self) -> Act | None:
        """A node's part of a checkpoint."""
        lease_id = self.lease_id(started=True)
        if lease_id is None:
            return None
        steps = [row["step"] for row in self.rows("checkpoints") if row["lease_id"] == lease_id]
        new = NewCheckpoint(
            node=self.dice.choice([0, 0, 1]),
            step=max(steps, default=0) + self.dice.choice([0, 0, 1, 5, -3]),
            manifest_digest=self.dice.choice(["d"] * 9 + ["e"]),
            size=1,
            files=1,
            metrics={"loss": self.dice.choice([0.25, 1e20])},
            evaluation_due=self.chance(0.5),
            required_cursors=(Cursor(0, "events", 1000 if self.chance(0.1) else 0),),
            copies=(Copy(store="host", uri=retention_store.host_copy_uri(self.dice.choice(AGENTS))),),
        )
        return lambda db: checkpoints.register(db, lease_id, new)

    def copy(self) -> Act | None:
        """A copy of one."""
        lease_id, checkpoint = self.lease_id(started=True), self.one("checkpoints")
        if lease_id is None or checkpoint is None:
            return None
        uri = self.dice.choice(["relay://x", "relay://y", "file:///mnt/x"])
        copy = Copy(store=uri.partition(":")[0], uri=uri)
        node = 1 if self.chance(0.1) else 0
        return lambda db: checkpoints.add_copy(db, lease_id, checkpoint["id"], node, copy)

    def pin(self) -> Act | None:
        """A user pins a checkpoint, or unpins it."""
        checkpoint = self.one("checkpoints")
        if checkpoint is None:
            return None
        run_id, checkpoint_id, pinned = checkpoint["run_id"], checkpoint["id"], self.chance(0.5)
        return lambda db: retention.pin(db, run_id, checkpoint_id, pinned, "the paper's")

    def remove(self) -> Act | None:
        """A host asks which copies to delete, and reports that it has deleted some."""
        agent = self.one("agents")
        if agent is None or agent["session_id"] is None:
            return None
        name, session_id = agent["name"], agent["session_id"] if self.chance(0.9) else NOBODY
        known = [(row["lease_id"], row["step"]) for row in self.rows("checkpoints")]
        known += [(row["id"], 7) for row in self.rows("leases")]
        sealed = list(dict.fromkeys(self.dice.sample(known, min(3, len(known)))))
        disk_low, count, age = self.chance(0.3), self.dice.randrange(4), self.dice.choice([0.0, TTL])

        async def act(db: Any) -> object:
            found = await retention.list_removals(db, name, session_id, age, disk_low=disk_low)
            gone = [(each.checkpoint_id, each.node, each.uri) for each in found[:count]]
            await retention.report_removals(db, name, session_id, gone)
            return found, await retention.find_orphans(db, sealed, age)

        return act

    def age(self) -> Act:
        """Time passes for those that are kept for a while."""
        return retention.apply_max_ages

    def complete(self) -> Act | None:
        """An attempt's last write; one that was sent before, now and then."""
        lease_id = self.lease_id()
        if lease_id is None:
            return None
        outcome = self.dice.choice([*Outcome, Outcome.FAILED])
        failed = {"code": 2, "reason": "EXIT", "message": "exit 1"} if outcome is Outcome.FAILED else None
        output = {"files": 1, "size": 2, "manifest_digest": "d"} if outcome is Outcome.SUCCEEDED else None
        report = Completion(
            node=1 if self.chance(0.1) else 0,
            outcome=outcome,
            digest=str(uuid5(lease_id, outcome.value)),
            cause=self.dice.choice(list(Cause)),
            permanent=self.chance(0.2),
            error=failed,
            output=output,
            final_cursors=(Cursor(0, "events", 1000 if self.chance(0.1) else 0),),
        )
        if self.chance(0.5):
            report = self.reports.setdefault(lease_id, report)
        return lambda db: leases.complete(db, lease_id, report)

    # services

    def plan(self) -> Act:
        """A planner's round."""
        return lambda db: plan_once(db, DEFAULT)

    def grant(self) -> Act | None:
        """What some planner had planned, with a world that may have changed since."""
        run = self.one("runs")
        if run is None or not self.rows("agents"):
            return None
        chosen = self.dice.sample(self.rows("agents"), min(len(self.rows("agents")), self.dice.choice([1, 1, 2])))
        seats = tuple(
            scheduling.Placement(
                row["name"], (self.dice.randrange(2),), NOBODY if self.chance(0.1) else row["session_id"]
            )
            for row in chosen
        )
        if self.chance(0.05):
            seats = (scheduling.Placement("nobody", (0,), NOBODY),)
        planned = scheduling.Grant(run["id"], seats)
        return lambda db: leases.grant(db, planned, TTL)

    def judge(self) -> Act | None:
        """What the reaper, or a heartbeat, thought that it saw."""
        lease_id = self.lease_id()
        if lease_id is None:
            return None
        judgements: list[Callable[..., Awaitable[object]]]
        judgements = [leases.lapse, leases.lapse, leases.renew_lapsed, leases.end_missing]
        judgement = self.dice.choice(judgements)
        return lambda db: judgement(db, lease_id)

    def tick(self) -> Act:
        """A tick of a reaper that continues or has just started."""
        looked = self.looked if self.chance(0.5) else None
        now = self.storage.now()
        self.looked = ReaperLook(now, _monotonic(now))
        return lambda db: reap_once(db, DEFAULT, looked, monotonic=lambda: _monotonic(now))

    def recognise(self) -> Act:
        """A look at which database it is."""
        return lambda db: sessions.recognise_database(db, TTL)

    def lead(self) -> Act:
        """A service takes the lead and gives it up."""

        async def act(db: Any) -> object:
            async with db.dedicated() as conn, db.dedicated() as other:
                leads = await deployment_store.try_lead(conn, 7), await deployment_store.try_lead(other, 7)
                await deployment_store.check_leadership(conn)
            return leads

        return act


def _monotonic(now: datetime) -> float:
    return (now - datetime(2026, 1, 1, tzinfo=now.tzinfo)) / timedelta(seconds=1)


_WEIGHTS = {
    "submit": 5, "verb": 3, "hello": 4, "goodbye": 2, "beat": 12, "start": 8, "append": 12, "register": 12, "copy": 5,
    "pin": 2, "remove": 4, "age": 1, "complete": 4, "plan": 8, "grant": 5, "judge": 6, "tick": 6,
    "recognise": 2, "lead": 1,
}  # fmt: skip

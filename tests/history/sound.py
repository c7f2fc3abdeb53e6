"""A correct history made by hand: run `r` trains on `a`, which stops responding, and then to the end on `b`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.history.checker import violations
from tests.history.index import Violation
from tests.history.record import TABLES, Execution, Signal, Source, Step, Witness

FIRST, SECOND = "1" * 32, "2" * 32  #: the two leases


def loss(step: int) -> float:
    """Whatever a step comes to."""
    return 1 / step


@dataclass
class Made:
    """Rows and witness, to be spoilt."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {table: [] for table in TABLES})
    steps: list[Step] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    files: dict[Source, bytes] = field(default_factory=dict)
    submitted: dict[str, str] = field(default_factory=lambda: {"q": "r"})

    def broken(self) -> list[Violation]:
        """What the checker finds."""
        seen = (self.steps, self.executions, self.signals, self.files, self.submitted)
        return violations(self.tables, Witness(*seen))

    def row(self, table: str, **values: Any) -> dict[str, Any]:
        """The first row with these values."""
        return next(row for row in self.tables[table] if all(row[name] == value for name, value in values.items()))

    def add(self, table: str, **values: Any) -> dict[str, Any]:
        """One more row."""
        self.tables[table].append(values)
        return values

    def tell(self, kind: str, lease: str | None, state: str, **details: Any) -> dict[str, Any]:
        """One more entry of the run's history."""
        run = self.tables["runs"][0]
        run["event_sequence"] += 1
        attempt = {FIRST: 1, SECOND: 2}.get(lease or "", 0)
        return self.add(
            "run_events", run_id="r", sequence=run["event_sequence"], kind=kind, lease_id=lease, attempt=attempt,
            details=details, state=state,
        )  # fmt: skip

    def grant(self, lease: str, agent: str, at: float) -> None:
        """A lease on slot 0 of an agent."""
        run = self.tables["runs"][0]
        run["attempts"] += 1
        self.add(
            "leases", id=lease, run_id="r", attempt=run["attempts"], state="held", policy="stop", stop_reason=None,
            grant_time=at, start_time=None, end_time=None, outcome=None, completion=None, resumed_from=None,
            resumed_step=0, kept_until_step=None,
        )  # fmt: skip
        self.add("places", lease_id=lease, node=0, agent=agent, slots=[0], end_time=None)
        self.tell("granted", lease, "running")

    def start(self, lease: str, at: float, step: int = 0) -> None:
        """From a checkpoint of the first lease, or anew."""
        row = self.row("leases", id=lease)
        point = self.row("checkpoints", lease_id=FIRST, step=step)["id"] if step else None
        row.update(start_time=at, resumed_from=point, resumed_step=step)
        self.tell("started", lease, "running", checkpoint=point or "", step=step, skipped=[])

    def train(self, lease: str, steps: range, save: set[int], at: float) -> None:
        """What a trainer does and its host sends; `save` are steps of checkpoints."""
        lines = b""
        for step in steps:
            lines += _line(type="metric", step=step, values={"train_loss": loss(step)})
            self.steps.append(Step("r", lease, step, loss(step)))
            lines += _line(type="checkpoint", step=step, path=f"step_{step}") if step in save else b""
        self.files |= {(lease, 0, "events"): lines, (lease, 0, "stdout"): b"hello\nworld\n"}
        chunk = {"run_id": "r", "lease_id": lease, "metric": "train_loss", "times": [at] * len(steps)}
        count = len(self.tables["metric_chunks"])
        self.add("metric_chunks", id=count, steps=list(steps), points=[loss(step) for step in steps], **chunk)
        for offset, data in ((0, b"hello\n"), (6, b"world\n")):
            where = {"lease_id": lease, "node": 0, "source": "stdout"}
            self.add("log_chunks", id=offset, offset_bytes=offset, data=data, time=at, **where)
        for source, size in (("events", len(lines)), ("stdout", 12)):
            self.add("cursors", lease_id=lease, node=0, source=source, offset_bytes=size, dropped=0)
        for step in sorted(save):
            self.save(lease, step, at)

    def save(self, lease: str, step: int, at: float) -> None:
        """A checkpoint: registered, head, and copied."""
        name, digest = f"{lease[:1]}-{step}", f"sha256:{lease[:1]}{step}"
        self.add(
            "checkpoints", id=name, run_id="r", lease_id=lease, attempt=int(lease[0]), step=step, complete=True,
            superseded=False, create_time=at,
        )  # fmt: skip
        self.add("checkpoint_parts", checkpoint_id=name, node=0, manifest_digest=digest)
        self.add("checkpoint_copies", checkpoint_id=name, node=0, uri=f"relay://{digest}", store="relay")
        self.tables["runs"][0]["head_id"] = name
        self.tell("checkpoint", lease, "running", checkpoint=name, step=step)
        self.tell("copied", lease, "running", checkpoint=name, step=step)

    def end(self, lease: str, at: float, outcome: str, state: str) -> None:
        """The lease's, and what the run is then."""
        completion = None if outcome == "faulted" else {"digest": "d"}
        self.row("leases", id=lease).update(state="ended", end_time=at, outcome=outcome, completion=completion)
        self.row("places", lease_id=lease)["end_time"] = at
        self.tell("ended", lease, state, outcome=outcome)


def _line(**said: Any) -> bytes:
    return json.dumps(said).encode() + b"\n"


def sound() -> Made:
    """Return the history: `a` dies at step 5, with step 4 saved; `b` continues to step 8."""
    made = Made()
    made.add("runs", id="r", state="succeeded", wanted="run", attempts=0, head_id=None, event_sequence=0, end_time=21.0)
    made.add("requests", id="q", run_id="r")
    made.add("agents", name="a", held=[])
    made.add("agents", name="b", held=[{"lease": SECOND, "node": 0, "phase": "ending", "slots": [0]}])
    made.tell("created", None, "queued")
    made.grant(FIRST, "a", 1.0)
    made.start(FIRST, 2.0)
    made.train(FIRST, range(1, 6), {2, 4}, 3.0)
    made.executions.append(Execution("r", FIRST, "stop", "a", 2.0, 6.0, slots=(0,)))
    made.end(FIRST, 7.0, "faulted", "queued")
    made.grant(SECOND, "b", 8.0)
    made.start(SECOND, 9.0, step=4)
    made.row("leases", id=FIRST)["kept_until_step"] = 4
    made.train(SECOND, range(5, 9), {6, 8}, 10.0)
    made.executions.append(Execution("r", SECOND, "stop", "b", 9.0, 20.0, slots=(0,)))
    made.signals.append(Signal(SECOND, "SIGTERM"))
    made.end(SECOND, 21.0, "succeeded", "succeeded")
    return made

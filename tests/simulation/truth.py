"""What was truly done, as the trainers and shims themselves know it. The coordinator's record is compared with it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.loop import Process

BEGIN = hashlib.sha256(b"begin").hexdigest()


def advanced(chain: str, step: int, lease: str) -> str:
    """The state after one more step. It tells who made every step before it, so a foreign one cannot pass."""
    return hashlib.sha256(f"{chain} {step} {lease}".encode()).hexdigest()


def loss(chain: str) -> float:
    """What a step in this state reports."""
    return int(chain[:8], 16) / 2**32


@dataclass(slots=True)
class Execution:
    """One trainer's life."""

    run: str
    lease: str
    host: str
    policy: str
    process: Process
    began: float
    resumed_step: int
    parent: tuple[str, int] | None  #: (lease, step) of the state it began with
    ended: float | None = None
    finished: bool = False  #: it made its last step
    asked: int = 0  #: SIGTERMs

    def executes(self, now: float, margin: float) -> bool:
        """Whether it runs now, and has for so long that its shim, which froze and thawed with it, had time to kill."""
        return self.ended is None and self.process.running and now - self.process.thawed_at > margin


@dataclass(slots=True)
class Written:
    """An attempt's events file, and where in it which line ends."""

    path: Path
    points: list[tuple[int, float]] = field(default_factory=list)  #: (step, loss) of each metric line
    point_ends: list[int] = field(default_factory=list)
    checkpoints: dict[int, int] = field(default_factory=dict)  #: end of the checkpoint line by step
    evaluations: dict[int, tuple[float, int]] = field(default_factory=dict)  #: by step: the value, the line's end
    size: int = 0

    @property
    def length_of_whole_lines(self) -> int:
        """Bytes up to the end of the last whole line that matters here."""
        return max([*self.point_ends[-1:], *self.checkpoints.values()], default=0)

    def up_to(self, offset: int) -> list[tuple[int, float]]:
        """The points of the lines that end at or before an offset."""
        return self.points[: bisect_right(self.point_ends, offset)]


@dataclass(slots=True)
class Truth:
    """By lease, whose ids are as in names of leases: plain uuids."""

    executions: list[Execution] = field(default_factory=list)
    written: dict[str, Written] = field(default_factory=dict)
    evaluates: bool = False  #: whether trainers evaluate what they have saved
    states: dict[tuple[str, int], str] = field(default_factory=dict)  #: chain of each saved state
    margin: float = 1.0  #: seconds that a shim may need to kill once it runs
    dropped: Callable[[str], None] = lambda _: None  #: called with a lease that its agent drops
    slots_of: Callable[[str], set[int]] = lambda _: set()  #: of a lease
    wrong: list[str] = field(default_factory=list)  #: what trainers and shims saw that may not be

    def execution(self, lease: str) -> Execution | None:
        """The newest of a lease."""
        return next((each for each in reversed(self.executions) if each.lease == lease), None)

    def begin(self, mine: Execution, now: float) -> None:
        """Start a trainer, of a lease that was never started, on slots that are free on its machine."""
        if self.execution(mine.lease) is not None:
            self.wrong.append(f"S10: {mine.lease} was begun twice")
        for other in self.executions:
            alive = other.ended is None and other.host == mine.host and other.lease != mine.lease
            if alive and self.slots_of(other.lease) & self.slots_of(mine.lease):
                self.wrong.append(f"S9: {other.lease} still runs on {mine.host}, on slots where {mine.lease} begins")
        self.executions.append(mine)
        self.check_alone(mine, now)

    def check_alone(self, mine: Execution, now: float) -> None:
        """S3: under `stop` no other trainer executes as holder while this one does."""
        if mine.policy != "stop" or not mine.executes(now, self.margin):
            return
        for other in self.executions:
            if other.run == mine.run and other is not mine and other.executes(now, self.margin):
                self.wrong.append(
                    f"S3: {mine.lease} on {mine.host} and {other.lease} on {other.host} both train {mine.run}"
                )

    def lineage(self, lease: str) -> list[tuple[int, float]]:
        """The one true curve that ends with a lease: each attempt's steps up to where the next resumed."""
        curve: list[tuple[int, float]] = []
        upto: int | None = None
        at: str | None = lease
        while at is not None and (made := self.execution(at)) is not None:
            points = [each for each in self.written[at].points if upto is None or each[0] <= upto]
            curve = points + curve
            at, upto = made.parent if made.parent is not None else (None, None)
        return curve

"""Which faults, when, for how long: a pure function of a seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Fault(StrEnum):
    """The faults of a deployment of real processes. Each is over after a while."""

    AGENT_KILLED = "agent killed"
    SHIM_KILLED = "shim killed"
    TRAINER_KILLED = "trainer killed"
    REPLICA_KILLED = "replica killed"
    POSTGRES_KILLED = "postgres killed"

    HOST_VANISHED = "host vanished"
    HOST_LEFT = "host left"
    AGENT_DETACHED = "agent detached"
    REPLICA_ROLLED = "replica rolled"
    POSTGRES_RESTARTED = "postgres restarted"

    AGENT_FROZEN = "agent frozen"
    SHIM_FROZEN = "shim frozen"
    HOST_FROZEN = "host frozen"
    REPLICA_FROZEN = "replica frozen"

    LINE_CUT = "line cut"
    LINE_SWALLOWS = "line swallows"
    LINE_SWALLOWS_ANSWERS = "line swallows answers"
    LINE_DELAYS = "line delays"
    LINE_NARROW = "line narrow"
    LINE_HALF_CLOSED = "line half closed"
    DATABASE_CUT = "database line cut"

    RUN_PAUSED = "run paused"
    RUN_CANCELLED = "run cancelled"


KILLS = (
    *(Fault.AGENT_KILLED, Fault.SHIM_KILLED, Fault.TRAINER_KILLED),
    *(Fault.REPLICA_KILLED, Fault.POSTGRES_KILLED),
)
FAULTS = tuple(Fault)
STEPS = 40  #: of the longest run
SHORT, LONG = (0.2, 2.0), (3.5, 7.0)  #: seconds: within a lease of the test profile, and beyond it
POLICIES = ("continue", "continue", "stop")


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: `at` seconds from the beginning, over `lasts` seconds later."""

    at: float
    fault: Fault
    lasts: float
    pick: float  #: which of the things it can hit, from 0 up to 1

    def of(self, things: Sequence[T]) -> T:
        """The one of them that it hits."""
        return things[int(self.pick * len(things))]


@dataclass(frozen=True, slots=True)
class Plan:
    """A round: runs, by their steps and policy, and what befalls them meanwhile."""

    seed: str
    runs: Sequence[tuple[int, str]]
    strikes: Sequence[Strike]
    seconds: float  #: that the longest run takes at the pace of the round


def plan(
    seed: str,
    faults: Sequence[Fault],
    *,
    strikes: int,
    runs: int,
    seconds: float,
    lasts: Sequence[tuple[float, float]] = (SHORT, LONG),
) -> Plan:
    """All kinds of faults as often as each other, spread over the time; a third of the runs under `stop`.

    `lasts` are the ranges of seconds after which a fault is over, each as likely as the others.
    """
    random = Random(seed)
    kinds = random.sample(faults, len(faults))
    chosen = itertools.islice(itertools.cycle(kinds), strikes)
    struck = [
        Strike(random.uniform(0, seconds), fault, random.uniform(*random.choice(lasts)), random.random())
        for fault in chosen
    ]
    lengths = [
        (random.randint(STEPS // 4, STEPS) if number else STEPS, random.choice(POLICIES)) for number in range(runs)
    ]
    return Plan(seed, lengths, sorted(struck, key=lambda strike: strike.at), seconds)

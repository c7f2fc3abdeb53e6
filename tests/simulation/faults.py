"""What goes wrong, and when: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.simulation.network import Way, Weather

WEATHERS = (
    Weather(latency=0.3),
    Weather(latency=0.02, doubled=0.3),
    Weather(latency=0.02, lost=0.3, overtaken=0.2),
    Weather(latency=0.05, replies_lost=0.4),
    Weather(latency=0.1, lost=0.1, doubled=0.2, overtaken=0.1, replies_lost=0.2),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens at `at` and, where it is a state, is over `lasts` seconds later."""

    kind: str
    at: float
    lasts: float = 0.0
    target: int = 0  #: a host, a replica or a run
    both: bool = False  #: all hosts, or all replicas
    ways: tuple[Way, ...] = ()
    weather: Weather | None = None
    amount: float = 0.0  #: seconds: of a clock's step, that a failover loses, …

    def __str__(self) -> str:
        more = [f"target={self.target}", *(["all"] if self.both else []), *(way.value for way in self.ways)]
        more += [f"{self.amount:+.1f}"] if self.amount else []
        return f"{self.at:6.2f} {self.kind} for {self.lasts:.2f} ({' '.join(more)})"


Maker = Callable[[Random, float, float], Fault]


def _lasting(kind: str, *lengths: float, both: float = 0.0) -> Maker:
    """Of about these lengths, in times-to-live; with a probability for all at once."""
    return lambda random, at, ttl: Fault(
        kind,
        at,
        random.choice(lengths) * ttl * random.uniform(0.5, 1.5),
        random.randrange(6),
        random.random() < both,
    )


def _partition(random: Random, at: float, ttl: float) -> Fault:
    ways = random.choice([(Way.UP, Way.DOWN), (Way.UP, Way.DOWN), (Way.UP,), (Way.DOWN,)])
    lasts = random.choice([0.3, random.uniform(0.85, 1.15), 1.5, 2.5, 3.5]) * ttl
    return Fault("partition", at, lasts, random.randrange(6), random.random() < 0.3, ways)


def _weather(random: Random, at: float, ttl: float) -> Fault:
    return Fault("weather", at, random.uniform(1, 4) * ttl, weather=random.choice(WEATHERS))


def _clock(random: Random, at: float, _: float) -> Fault:
    return Fault("database_clock", at, amount=random.choice([3600.0, -3600.0, 5.0, -5.0]))


def _stunned(random: Random, at: float, ttl: float) -> Fault:
    """An agent that hangs for less time than its trust lasts, and is cut off before it continues."""
    return Fault("stunned", at, random.uniform(1.1, 2.0) * ttl / 3, random.randrange(6), amount=2.5 * ttl)


def _frozen_at_grant(random: Random, at: float, ttl: float) -> Fault:
    """A host that is suspended the moment it is granted something, before it has started it; most grants come early."""
    at = random.choice([at, random.uniform(0.1, 2.0)])
    lasts = random.choice([1.5, 3.0]) * ttl * random.uniform(0.7, 1.3)
    return Fault("frozen_at_grant", at, lasts, random.randrange(6), amount=random.uniform(0.0, 0.1))


def _database_slow(random: Random, at: float, ttl: float) -> Fault:
    """Each statement and commit takes `amount` seconds on average: whatever comes between two of them has the time."""
    return Fault("database_slow", at, random.uniform(0.5, 3) * ttl, amount=random.choice([0.03, 0.1, 0.3]))


def _late_heartbeat(random: Random, at: float, ttl: float) -> Fault:
    """An agent that hangs for about a TTL, on a slow database: it renews while its lease is being found to be over."""
    return Fault("late_heartbeat", at, random.uniform(0.85, 1.2) * ttl, random.randrange(6), amount=0.03)


def _swapped(kind: str, *losses: float) -> Maker:
    return lambda random, at, ttl: Fault(kind, at, random.uniform(0, 1), amount=random.choice(losses) * ttl)


#: How each kind is made, and with how many lots it is drawn; without any it is only drawn where it is asked for.
KINDS: Mapping[str, tuple[int, Maker]] = {
    "agent_killed": (4, _lasting("agent_killed", 0.2, 1.0, 2.0)),
    "agent_frozen": (3, _lasting("agent_frozen", 0.5, 1.0, 1.5, 3.0)),
    "host_frozen": (3, _lasting("host_frozen", 0.5, 1.0, 1.5, 3.0)),
    "frozen_at_grant": (1, _frozen_at_grant),
    "power_cut": (3, _lasting("power_cut", 0.3, 2.0)),
    "trainer_killed": (2, _lasting("trainer_killed", 0.0)),
    "shim_killed": (2, _lasting("shim_killed", 0.0)),
    "leave": (2, _lasting("leave", 0.5, 2.0)),
    "detach": (1, _lasting("detach", 0.2, 0.5)),
    "cloned": (2, _lasting("cloned", 1.0, 3.0)),
    "replica_killed": (3, _lasting("replica_killed", 0.3, 2.0, both=0.3)),
    "replica_frozen": (2, _lasting("replica_frozen", 0.5, 2.0, both=0.2)),
    "partition": (4, _partition),
    "line_stalls": (1, _lasting("line_stalls", 0.5, 1.0, both=0.3)),
    "weather": (5, _weather),
    "database_away": (2, _lasting("database_away", 0.3, 1.5, 3.0)),
    "database_slow": (1, _database_slow),
    "commits_unknown": (2, _lasting("commits_unknown", 1.0, 3.0)),
    "deaf": (1, _lasting("deaf", 1.0, 3.0, both=0.5)),
    "database_clock": (1, _clock),
    "failover": (2, _swapped("failover", 0.1, 0.5, 2.0)),
    "restored": (1, _swapped("restored", 0.5, 2.0)),
    "store_away": (1, _lasting("store_away", 0.5, 2.0)),
    "damaged": (2, _lasting("damaged", 0.0)),
    "pause": (1, _lasting("pause", 0.0, 0.5, 1.0)),
    "cancel": (1, _lasting("cancel", 0.0)),
    "requeue": (1, _lasting("requeue", 0.5)),
    "late_heartbeat": (0, _late_heartbeat),
    "stunned": (0, _stunned),
}


def schedule(random: Random, ttl: float, until: float, kinds: Sequence[str] = ()) -> list[Fault]:
    """A few faults before `until`, of a few kinds: a seed that knows all kinds goes deep into none of them.

    They come close together, for it is their coincidence that breaks things. With `kinds` they are of these.
    """
    names = list(kinds) or list(KINDS)
    lots = [1 if kinds else KINDS[name][0] for name in names]
    chosen = random.choices(names, lots, k=random.choice([1, 2, 2, 3, 3, 4, 6]))
    centres = [random.uniform(2.0, until) for _ in range(random.randint(1, 3))]
    faults = []
    for _ in range(random.randint(2, 7)):
        at = random.choice(centres) + random.gauss(0, ttl / 2)
        faults.append(KINDS[random.choice(chosen)][1](random, min(max(0.1, at), until), ttl))
    return sorted(faults, key=lambda fault: fault.at)

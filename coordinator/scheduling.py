"""The scheduler: maps the whole queue and the whole fleet to grants and explanations. Pure.

A *slot* is a GPU by its index or, on a host without GPUs, one of the runs that it can run at once. A run occupies
`gpus` slots on each of its hosts (one, where it asks for none or the host has none), on as many hosts as it has nodes,
all or none. Runs of higher priority are placed first, then older ones; a run that cannot be placed does not hold up any
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCapacity:
    """The capacity of one host, as the plan sees it. Sizes are in bytes; `unschedulable` is why it takes no work."""

    name: str
    free: tuple[int, ...]
    slots: int
    session: UUID | None = None
    gpus: Mapping[int, int] = field(default_factory=dict)  #: memory in bytes by index; empty on a host without GPUs
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    unschedulable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The resources that a run needs on each of its hosts. Sizes are in bytes."""

    nodes: int = 1
    gpus: int = 1
    require_cuda: bool = False
    vram: int = 0
    memory: int = 0
    disk: int = 0
    cpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    allowed_hosts: frozenset[str] = frozenset()
    prefer_hosts: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.nodes, self.gpus, self.vram, self.memory, frozenset(self.labels.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimableRun:
    """A run that can be granted: queued, or running with a lapsed lease."""

    run: str
    need: Need
    create_time: datetime
    priority: int = 0
    eligible_time: datetime | None = None
    near: frozenset[str] = frozenset()  #: hosts that have its head's checkpoint on their disk
    avoid: frozenset[str] = frozenset()  #: hosts on which it just failed


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one node of a run is placed: an agent, slots of it, and the session in which the agent described them."""

    agent: str
    slots: tuple[int, ...]
    session: UUID | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A run and where its nodes are placed, node 0 first."""

    run: str
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True)
class SchedulingDecisions:
    """The grants to make, and for every run that waits the reason, for users."""

    grants: tuple[Grant, ...]
    explanations: Mapping[str, str]


def plan(queue: Iterable[ClaimableRun], fleet: Iterable[HostCapacity], now: datetime) -> SchedulingDecisions:
    """Place every run that can be placed.

    Free capacity only shrinks during a plan, so once one run has found no place, no other run with the same need will.
    A queue of thousands has few different needs.
    """
    hosts = {host.name: host for host in fleet}
    grants: list[Grant] = []
    explanations: dict[str, str] = {}
    unmet: dict[Need, str] = {}
    for claim in sorted(queue, key=lambda claim: (-claim.priority, claim.create_time, claim.run)):
        if claim.eligible_time is not None and claim.eligible_time > now:
            explanations[claim.run] = f"will be retried at {claim.eligible_time:%H:%M:%S} UTC, after a failure"
            continue
        placements = () if claim.need in unmet else choose_placements(claim, list(hosts.values()))
        if placements:
            grants.append(Grant(claim.run, placements))
            for placement in placements:
                host = hosts[placement.agent]
                hosts[placement.agent] = replace(
                    host, free=tuple(slot for slot in host.free if slot not in placement.slots)
                )
        else:
            if claim.need not in unmet:
                unmet[claim.need] = explain_placement(claim.need, list(hosts.values()))
            explanations[claim.run] = unmet[claim.need]
    return SchedulingDecisions(tuple(grants), explanations)


def choose_placements(claim: ClaimableRun, fleet: Sequence[HostCapacity]) -> tuple[Placement, ...]:
    """Return where a run would be placed now; empty when nowhere."""
    fitting = sorted(find_candidates(claim.need, fleet), key=lambda host: _rank(claim, host))
    if len(fitting) < claim.need.nodes:
        return ()
    chosen = fitting[: claim.need.nodes]
    return tuple(Placement(host.name, _choose_slots(claim.need, host), host.session) for host in chosen)


def find_candidates(need: Need, fleet: Sequence[HostCapacity]) -> list[HostCapacity]:
    """Return the hosts that could run one node of it now."""
    return [host for host in fleet if not host.unschedulable and _admits(need, host) and _choose_slots(need, host)]


def _rank(claim: ClaimableRun, host: HostCapacity) -> tuple[bool, int, bool, bool, int, str]:
    """Return the sort key of a host, smallest first: not where the run just failed, then as it prefers, then near its
    checkpoint, then the tightest fit.
    """
    preferred = claim.need.prefer_hosts
    return (
        host.name in claim.avoid,
        preferred.index(host.name) if host.name in preferred else len(preferred),
        host.name not in claim.near,
        bool(host.gpus) is not bool(claim.need.gpus),
        len(host.free),
        host.name,
    )


def _admits(need: Need, host: HostCapacity) -> bool:
    """Return whether the run may use the host at all, by its name and labels."""
    named = not need.allowed_hosts or host.name in need.allowed_hosts
    return named and all(host.labels.get(key) == value for key, value in need.labels.items())


def _choose_slots(need: Need, host: HostCapacity, *, ever: bool = False) -> tuple[int, ...]:
    """Return the slots that the host has for one node now, or `ever` if nothing else ran there; empty when too few or
    small.
    """
    if host.memory < need.memory or host.disk < need.disk or host.cpus < need.cpus:
        return ()
    if not host.gpus:
        open_slots = tuple(range(host.slots)) if ever else host.free
        return () if need.require_cuda else open_slots[:1]
    wanted = max(1, need.gpus)
    fitting = _find_large_gpus(need, host, ever=ever)
    return fitting[:wanted] if len(fitting) >= wanted else ()


def _find_large_gpus(need: Need, host: HostCapacity, *, ever: bool) -> tuple[int, ...]:
    return tuple(index for index in (sorted(host.gpus) if ever else host.free) if host.gpus.get(index, 0) >= need.vram)


def explain_placement(need: Need, fleet: Sequence[HostCapacity]) -> str:
    """Return, for users, where a run could run now, or why it cannot be placed."""
    if (fitting := find_candidates(need, fleet)) and len(fitting) >= need.nodes:
        return f"can run now on {_join_names(fitting)}"
    if not fleet:
        return "no host has joined yet"
    if not (admitted := [host for host in fleet if _admits(need, host)]):
        return _explain_admission(need)
    need_text = describe_need(need)
    able = [host for host in admitted if _choose_slots(need, host, ever=True)]
    if len(able) < need.nodes:
        return f"{need_text}; {_describe_best(need, admitted, ever=True)}"
    in_service = [host for host in able if not host.unschedulable]
    if len(in_service) < need.nodes:
        reasons = ", ".join(f"{host.name} {host.unschedulable}" for host in able if host.unschedulable)
        return f"{need_text}; {reasons}"
    return f"{need_text}; {_describe_best(need, in_service, ever=False)}"


def _explain_admission(need: Need) -> str:
    requirements = [f"the label {key}={value}" for key, value in need.labels.items()]
    if need.allowed_hosts:
        requirements.append(f"a name among allowed_hosts ({', '.join(sorted(need.allowed_hosts))})")
    return f"no host has {' and '.join(requirements)}"


def describe_need(need: Need) -> str:
    """Return the resources that a run needs, for users."""
    if need.require_cuda:
        size = f" ≥ {need.vram / GIB:g} GiB" if need.vram else ""
        need_text = f"{max(1, need.gpus)} GPU{'s' if need.gpus > 1 else ''}{size}"
    else:
        need_text = "a free slot" if need.gpus <= 1 else f"{need.gpus} GPUs or a CPU slot"
    extras = [
        *([f"{need.memory / GIB:g} GiB of memory"] if need.memory else []),
        *([f"{need.disk / GIB:g} GiB of disk"] if need.disk else []),
        *([f"{need.cpus} CPUs"] if need.cpus else []),
    ]
    hosts = "one host" if need.nodes == 1 else f"each of {need.nodes} hosts"
    return f"needs {', '.join([need_text, *extras])} on {hosts}"


def _describe_best(need: Need, hosts: Sequence[HostCapacity], *, ever: bool) -> str:
    """Describe how close the best host, or the number of hosts, comes to the need."""
    fitting = sum(1 for host in hosts if _choose_slots(need, host, ever=ever))
    kind = "host" if ever else "free host"
    if need.nodes > 1 and fitting:
        return f"{fitting} {'is' if fitting == 1 else 'are'} {'like that' if ever else 'free'}"
    if need.require_cuda:
        most = max((len(_find_large_gpus(need, host, ever=ever)) for host in hosts if host.gpus), default=0)
        return f"the best {kind} has {most or 'none'}"
    if ever and need.disk > (most_free := max(hosts, key=lambda host: host.disk)).disk:
        return f"the host with the most disk free, {most_free.name}, has {most_free.disk / GIB:.1f} GiB"
    if ever:
        largest = max(hosts, key=lambda host: (host.memory, host.cpus))
        return f"the largest host, {largest.name}, has {largest.memory / GIB:.1f} GiB and {largest.cpus} CPUs"
    return "all are occupied"


def _join_names(hosts: Sequence[HostCapacity]) -> str:
    names = sorted(host.name for host in hosts)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""The plan as a table: queue and fleet in, grants and words out."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from coordinator.scheduling import GIB, ClaimableRun, Grant, HostCapacity, Need, Placement, SchedulingDecisions, plan

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def cpu(name: str, free: int = 1, slots: int = 1, **more: Any) -> HostCapacity:
    return HostCapacity(
        name=name, free=tuple(range(slots - free, slots)), slots=slots, memory=16 * GIB, cpus=8, disk=GIB, **more
    )


def gpu(name: str, *gib: int, free: tuple[int, ...] | None = None, **more: Any) -> HostCapacity:
    sizes = {index: size * GIB for index, size in enumerate(gib)}
    return HostCapacity(
        name=name, free=tuple(sizes) if free is None else free, slots=len(sizes), gpus=sizes, memory=64 * GIB, **more
    )


def run(name: str, need: Need | None = None, *, age: int = 0, **more: Any) -> ClaimableRun:
    return ClaimableRun(run=name, need=need or Need(), create_time=NOW - timedelta(seconds=age), **more)


def granted(decisions: SchedulingDecisions) -> dict[str, list[str]]:
    return {grant.run: [placement.agent for placement in grant.placements] for grant in decisions.grants}


def test_priority_first_then_the_oldest() -> None:
    queue = [run("young"), run("old", age=9), run("urgent", priority=1)]
    decisions = plan(queue, [cpu("a"), cpu("b")], NOW)
    assert granted(decisions) == {"urgent": ["a"], "old": ["b"]}
    assert decisions.explanations == {"young": "needs a free slot on one host; all are occupied"}


def test_a_run_that_cannot_be_placed_holds_nobody_up() -> None:
    decisions = plan([run("big", Need(require_cuda=True, gpus=8), age=9), run("small")], [cpu("a")], NOW)
    assert granted(decisions) == {"small": ["a"]}


def test_a_need_that_was_not_met_is_judged_once_for_all_runs_that_share_it() -> None:
    """A queue of thousands is planned in a moment, between two heartbeats."""

    times = 0

    class Labels(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal times
            times += 1
            return super().get(key, default)

    hosts = [cpu(f"h{number}", labels=Labels(zone="a")) for number in range(3)]
    queue = [run(f"r{number}", Need(labels={"zone": "b"}), age=number) for number in range(50)]
    decisions = plan([*queue, run("fits", Need(labels={"zone": "a"}))], hosts, NOW)
    assert granted(decisions) == {"fits": ["h0"]}
    assert (
        set(decisions.explanations.values()) == {"no host has the label zone=b"} and len(decisions.explanations) == 50
    )
    assert times < 20


def test_no_slot_is_granted_twice_and_gpus_are_slots() -> None:
    need = Need(gpus=2, require_cuda=True)
    decisions = plan([run("r1", need, age=2), run("r2", need, age=1), run("r3", need)], [gpu("g", 80, 80, 80, 80)], NOW)
    assert decisions.grants == (Grant("r1", (Placement("g", (0, 1)),)), Grant("r2", (Placement("g", (2, 3)),)))


def test_only_gpus_with_enough_memory_are_given() -> None:
    decisions = plan([run("r", Need(require_cuda=True, vram=40 * GIB))], [gpu("g", 24, 80)], NOW)
    assert decisions.grants == (Grant("r", (Placement("g", (1,)),)),)


def test_gangs_are_placed_whole_or_not_at_all() -> None:
    need = Need(nodes=2)
    assert granted(plan([run("gang", need)], [cpu("a"), cpu("b")], NOW)) == {"gang": ["a", "b"]}
    half = plan([run("gang", need)], [cpu("a"), cpu("b", free=0)], NOW)
    assert (half.grants, half.explanations["gang"]) == ((), "needs a free slot on each of 2 hosts; 1 is free")


def test_a_run_that_fits_on_no_disk_is_told_how_much_there_is() -> None:
    decisions = plan([run("r", Need(disk=60 * GIB))], [cpu("a"), cpu("b")], NOW)
    assert decisions.explanations["r"] == (
        "needs a free slot, 60 GiB of disk on one host; the host with the most disk free, a, has 1.0 GiB"
    )


@pytest.mark.parametrize("trouble", ["is unreachable", "is leaving", "is not ready: disk full"])
def test_an_agent_in_trouble_is_no_candidate(trouble: str) -> None:
    decisions = plan([run("r")], [cpu("a", unschedulable=trouble)], NOW)
    assert (decisions.grants, decisions.explanations["r"]) == ((), f"needs a free slot on one host; a {trouble}")


@pytest.mark.parametrize(
    ("claim", "agent"),
    [
        (run("r", avoid=frozenset({"a"})), "b"),
        (run("r", near=frozenset({"b"})), "b"),
        (run("r", Need(prefer_hosts=("c", "b"))), "c"),
        (run("r", Need(prefer_hosts=("b",)), near=frozenset({"c"})), "b"),
        (run("r", Need(prefer_hosts=("b",)), avoid=frozenset({"b"})), "a"),
        (run("r", Need(allowed_hosts=frozenset({"c"})), avoid=frozenset({"c"})), "c"),
        (run("r", Need(labels={"zone": "z"})), "c"),
    ],
)
def test_which_of_several_hosts_it_prefers(claim: ClaimableRun, agent: str) -> None:
    fleet = [cpu("a"), cpu("b"), cpu("c", labels={"zone": "z"})]
    assert granted(plan([claim], fleet, NOW)) == {"r": [agent]}


def test_gpus_go_to_who_wants_gpus() -> None:
    fleet = [cpu("c"), gpu("g", 80)]
    decisions = plan([run("plain", Need(gpus=0), age=1), run("training")], fleet, NOW)
    assert granted(decisions) == {"plain": ["c"], "training": ["g"]}


def test_a_run_in_back_off_waits_for_its_time() -> None:
    decisions = plan([run("r", eligible_time=NOW + timedelta(seconds=5))], [cpu("a")], NOW)
    assert decisions.explanations == {"r": "will be retried at 12:00:05 UTC, after a failure"}
    assert granted(plan([run("r", eligible_time=NOW)], [cpu("a")], NOW)) == {"r": ["a"]}


@pytest.mark.parametrize(
    ("need", "fleet", "words"),
    [
        (Need(), [], "no host has joined yet"),
        (Need(labels={"zone": "z"}), [cpu("a")], "no host has the label zone=z"),
        (Need(allowed_hosts=frozenset({"x"})), [cpu("a")], "no host has a name among allowed_hosts (x)"),
        (
            Need(require_cuda=True, gpus=2, vram=40 * GIB),
            [gpu("g", 80, 80, free=(1,))],
            "needs 2 GPUs ≥ 40 GiB on one host; the best free host has 1",
        ),
        (Need(require_cuda=True), [cpu("a")], "needs 1 GPU on one host; the best host has none"),
        (
            Need(memory=32 * GIB),
            [cpu("a")],
            "needs a free slot, 32 GiB of memory on one host; the largest host, a, has 16.0 GiB and 8 CPUs",
        ),
        (Need(nodes=3), [cpu("a"), cpu("b")], "needs a free slot on each of 3 hosts; 2 are like that"),
    ],
)
def test_why_a_run_waits(need: Need, fleet: list[HostCapacity], words: str) -> None:
    assert plan([run("r", need)], fleet, NOW).explanations == {"r": words}

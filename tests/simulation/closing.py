"""Checks the liveness properties once faults have stopped, and that all that was done is recorded."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from datetime import datetime

from agent.checkpoints.removing import EVERY
from coordinator.commands import runs
from tests.history.checker import violations
from tests.history.record import Execution, Step, Witness
from tests.simulation.host import Host
from tests.simulation.store.tables import Row
from tests.simulation.truth import loss
from tests.simulation.world import Order, World

OVER = ("succeeded", "failed", "cancelled")
GRANTED = 6.0  #: seconds that a run may wait for a host that has room: a slow tick of the planner, and some
HEARD = 1.0  #: seconds until a stop is with the trainer (L4)


async def settled(world: World, reconnected: float, patience: float) -> None:
    """Until every run has ended: L2 and L4 on the way there, L1 and L3 where one does not get on."""
    began = world.loop.time()
    while not all(_is_connected(world, host) for host in world.hosts):
        if world.loop.time() - began > reconnected:
            world.report(
                "L2", f"not connected: {[host.name for host in world.hosts if not _is_connected(world, host)]}"
            )
            break
        await asyncio.sleep(0.5)
    await _stop_is_heard(world)
    waiting: dict[str, float] = {}
    while not all_over(world) or any(host.keepers for host in world.hosts):
        if world.loop.time() - began > patience:
            for order in world.orders:
                _say_where(world, order)
            return
        _no_run_waits_for_nothing(world, waiting)
        await asyncio.sleep(0.5)
    await _deletions_are_done(world)


async def _deletions_are_done(world: World) -> None:
    """Wait a TTL, and then until hosts have deleted what they are to delete, at most for two of their looks."""
    await asyncio.sleep(world.timing.ttl)
    until = world.loop.time() + 2 * (EVERY + 1) * world.timing.heartbeat
    while world.loop.time() < until and not all(_disk_is_settled(world, host) for host in world.hosts):
        await asyncio.sleep(world.timing.heartbeat)


async def _stop_is_heard(world: World) -> None:
    """L4: a pause of a run that trains on a live session. What trains on by a lease that has ended is no such run."""
    held = {str(lease) for lease, row in world.storage.tables["leases"].items() if row["end_time"] is None}
    there = {host.label for host in world.hosts if _has_a_live_session(world, host)}
    training = (each for each in world.truth.executions if each.ended is None and each.process.running)
    live = [each for each in training if each.asked == 0 and each.lease in held and each.host in there]
    if not live or world.random.random() < 0.5:
        return
    execution, said = live[0], world.loop.time()
    await world.steer(runs.pause, execution.run, "enough")
    while execution.asked == 0 and execution.ended is None:
        if world.loop.time() - said > HEARD + 10 * world.network.calm.latency:
            world.report("L4", f"the trainer of {execution.lease} has not heard of a pause for {HEARD} s")
            break
        await asyncio.sleep(0.05)
    await world.steer(runs.resume, execution.run)


def _no_run_waits_for_nothing(world: World, waiting: dict[str, float]) -> None:
    """L1: a run that may be granted is, where a host has room."""
    tables, now = world.storage.tables, world.storage.now()
    after = tables["deployment"][True]["stop_grants_after"]
    taken = len(world.storage.rows("taken_slots")) + sum(len(host.keepers) for host in world.hosts)
    for name, run in tables["runs"].items():
        withheld = run["spec"]["lifecycle"]["on_disconnect"] == "stop" and after is not None and after > now
        backs_off = run["eligible_time"] is not None and run["eligible_time"] > now
        ready = run["state"] == "queued" and not backs_off and not withheld and taken < world.room
        since = waiting.setdefault(name, world.loop.time()) if ready else waiting.pop(name, None)
        if ready and since is not None and world.loop.time() - since > GRANTED:
            world.report("L1", f"{name} waits, and there is room: {run['reason']}")


def _is_connected(world: World, host: Host) -> bool:
    return host.runs_agent and host.since_contact < 2 * world.timing.heartbeat


def _has_a_live_session(world: World, host: Host) -> bool:
    """Both ends know the same one, and have heard of each other on it."""
    agent = world.storage.tables["agents"].get(host.name)
    same = agent is not None and str(agent["session_id"]) == host.session_id
    return same and _is_connected(world, host)


def all_over(world: World) -> bool:
    """Whether every run has ended."""
    return all(_is_over(world, order) for order in world.orders)


def _is_over(world: World, order: Order) -> bool:
    run = world.storage.tables["runs"].get(order.name)
    return run is not None and run["state"] in OVER


def _say_where(world: World, order: Order) -> None:
    run = world.storage.tables["runs"].get(order.name)
    if run is None:
        world.report("L3", f"{order.name} is not there")
    elif run["state"] not in OVER:
        world.report("L3", f"{order.name} is {run['state']}, wanted {run['wanted']}: {run['reason']}")


def close_the_books(world: World) -> None:
    """Everything is over: one curve for each run, every line stored, nothing held."""
    for order in world.orders:
        if (run := world.storage.tables["runs"].get(order.name)) is not None:
            _one_curve(world, run)
    for lease in world.storage.rows("leases"):
        _drained(world, lease)
    for checkpoint in world.storage.rows("checkpoints"):
        _labelled(world, checkpoint)
    for host in world.hosts:
        if host.keepers:
            world.report("L5", f"{host.name} keeps {[keeper.job.lease for keeper in host.keepers]}")
    for execution in world.truth.executions:
        if execution.ended is None and execution.process.alive:
            world.report("L5", f"the trainer of {execution.lease} on {execution.host} lives on")
    if not (world.rules.was_swapped or world.clones):
        for host in world.hosts:
            _disk_agrees(world, host)
    _by_the_checker(world)


def _registered(world: World, host: Host) -> dict[tuple[str, int], datetime | None]:
    """The checkpoints that a host has by the registry, as lease and step, each with the time when it is deleted."""
    rows = world.storage.tables["checkpoints"]
    return {
        (str(rows[copy["checkpoint_id"]]["lease_id"])[:8], rows[copy["checkpoint_id"]]["step"]): copy["remove_time"]
        for copy in world.storage.rows("checkpoint_copies")
        if copy["uri"] == f"host://agents/{host.name}"
    }


def _lying(host: Host) -> set[tuple[str, int]]:
    """The checkpoints on a host's disk, as lease and step."""
    return {
        (path.parent.parent.name.partition("-")[2], int(path.name.rpartition("_")[2]))
        for path in host.folder.glob("root/runs/*/attempts/*/ckpt/*step_*")
    }


def _disk_is_settled(world: World, host: Host) -> bool:
    """Whether nothing is left to delete, and disk and registry agree."""
    registered = _registered(world, host)
    return not any(registered.values()) and _lying(host) == registered.keys()


def _disk_agrees(world: World, host: Host) -> None:
    """S6: a host's disk has the copies that the registry lists, unless they are being deleted, and no others."""
    registered, lying = _registered(world, host), _lying(host)
    lost = sorted(key for key, going in registered.items() if going is None and key not in lying)
    if lost or lying - registered.keys():
        world.report("S6", f"on {host.name} lies {sorted(lying - registered.keys())}, and not {lost}")


def witness(world: World) -> Witness:
    """What trainers and disks know, as the history checker takes it."""
    truth = world.truth
    executions = [
        Execution(
            run=each.run,
            lease=each.lease,
            policy=each.policy,
            host=each.host,
            began=each.began,
            ended=each.ended if each.ended is not None else math.inf,
            excused=each.process.was_frozen,
        )
        for each in truth.executions
    ]
    return Witness(
        steps=[
            Step(each.run, each.lease, step, value)
            for each in truth.executions
            for step, value in truth.written[each.lease].points
        ],
        executions=executions,
        files={
            (lease, 0, name): path.read_bytes()
            for lease, written in truth.written.items()
            for name, path in (("events", written.path), ("agent", written.path.with_name("agent.jsonl")))
            if path.exists()
        },
        steady=not world.clock_was_set,
    )


def _by_the_checker(world: World) -> None:
    """What decides about real deployments decides about this one too. A swapped database is not a history."""
    if not world.rules.was_swapped:
        recorded = {table: list(rows.values()) for table, rows in world.storage.tables.items()}
        for found in violations(recorded, witness(world)):
            world.report(found.property, f"{found.run}: {found.text}")


def _one_curve(world: World, run: Row) -> None:
    """S7: of the attempt that finished, and of those it stands on, every step once and no other."""
    leases = {row["id"]: row for row in world.storage.rows("leases") if row["run_id"] == run["id"]}
    finished = [lease for lease in leases.values() if lease["outcome"] == "succeeded"]
    if run["state"] != "succeeded" or not finished:
        return
    points: defaultdict[int, list[float]] = defaultdict(list)
    for chunk in world.storage.rows("metric_chunks"):
        if chunk["run_id"] == run["id"] and chunk["metric"] != "eval_loss":
            kept = leases[chunk["lease_id"]]["kept_until_step"]
            for step, value in zip(chunk["steps"], chunk["points"], strict=True):
                if kept is None or step <= kept:
                    points[step].append(value)
    curve = [(step, value) for step in sorted(points) for value in points[step]]
    last = max(finished, key=lambda lease: lease["end_time"])
    true = world.truth.lineage(str(last["id"]))
    if curve != true:
        world.report("S7", f"the curve of {run['id']} is {curve}, and what it stands on is {true}")


def _labelled(world: World, checkpoint: Row) -> None:
    """A checkpoint has its own evaluation as soon as that is stored, once, and never another's."""
    due, metrics = checkpoint["evaluation_due"], checkpoint["metrics"]
    true = world.truth.states.get((str(checkpoint["lease_id"]), checkpoint["step"]))
    if true is not None and metrics != ({} if due or not world.truth.evaluates else {"eval_loss": loss(true)}):
        world.report("labels", f"step {checkpoint['step']} of {checkpoint['lease_id']}: {metrics}, due: {due}")
    for lease in world.storage.rows("leases"):
        if lease["id"] != checkpoint["lease_id"] and lease["resumed_from"] != checkpoint["id"]:
            continue
        written = world.truth.written.get(str(lease["id"]))
        cursor = world.storage.tables["cursors"].get((lease["id"], 0, "events"))
        _, end = written.evaluations.get(checkpoint["step"], (0.0, math.inf)) if written else (0.0, math.inf)
        if due and cursor and cursor["offset_bytes"] >= end:
            world.report("labels", f"step {checkpoint['step']} of {checkpoint['lease_id']} lacks its evaluation")


def _drained(world: World, lease: Row) -> None:
    """L6: what an attempt that ended in order had written is stored whole."""
    written = world.truth.written.get(str(lease["id"]))
    cursor = world.storage.tables["cursors"].get((lease["id"], 0, "events"))
    stored = cursor["offset_bytes"] if cursor else 0
    orderly = lease["completion"] is not None and lease["outcome"] != "faulted"
    if orderly and written is not None and stored < written.length_of_whole_lines:
        world.report("L6", f"{lease['id']} has {written.length_of_whole_lines} bytes of events, {stored} are stored")

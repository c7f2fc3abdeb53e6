"""Once faults have stopped: the liveness properties, and whether all that was done is on record."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from tests.simulation.host import Host
from tests.simulation.store.tables import Row
from tests.simulation.world import Order, World

OVER = ("succeeded", "failed", "cancelled")


async def settled(world: World, reconnected: float, patience: float) -> None:
    """Until every run has ended; L2 on the way, and L3 when one has not in time."""
    began = world.loop.time()
    while not all(_is_connected(world, host) for host in world.hosts):
        if world.loop.time() - began > reconnected:
            world.say("L2", f"not connected: {[host.name for host in world.hosts if not _is_connected(world, host)]}")
            break
        await asyncio.sleep(0.5)
    while not all(_is_over(world, order) for order in world.orders) or any(host.keepers for host in world.hosts):
        if world.loop.time() - began > patience:
            for order in world.orders:
                _say_where(world, order)
            return
        await asyncio.sleep(1.0)
    await asyncio.sleep(2 * world.timing.heartbeat)


def _is_connected(world: World, host: Host) -> bool:
    return host.runs_agent and host.silence < 2 * world.timing.heartbeat


def _is_over(world: World, order: Order) -> bool:
    run = world.storage.tables["runs"].get(order.name)
    return run is not None and run["state"] in OVER


def _say_where(world: World, order: Order) -> None:
    run = world.storage.tables["runs"].get(order.name)
    if run is None:
        world.say("L3", f"{order.name} is not there")
    elif run["state"] not in OVER:
        world.say("L3", f"{order.name} is {run['state']}, wanted {run['wanted']}: {run['reason']}")


def close_the_books(world: World) -> None:
    """Everything is over: one curve for each run, every line stored, nothing held."""
    for order in world.orders:
        if (run := world.storage.tables["runs"].get(order.name)) is not None:
            _one_curve(world, run)
    for lease in world.storage.rows("leases"):
        _drained(world, lease)
    for host in world.hosts:
        if host.keepers:
            world.say("L5", f"{host.name} keeps {[keeper.job.lease for keeper in host.keepers]}")
    for execution in world.truth.executions:
        if execution.ended is None and execution.process.alive:
            world.say("L5", f"the trainer of {execution.lease} on {execution.host} lives on")


def _one_curve(world: World, run: Row) -> None:
    """S7: of the attempt that finished, and of those it stands on, every step once and no other."""
    leases = {row["id"]: row for row in world.storage.rows("leases") if row["run_id"] == run["id"]}
    finished = [lease for lease in leases.values() if lease["outcome"] == "succeeded"]
    if run["state"] != "succeeded" or not finished:
        return
    points: defaultdict[int, list[float]] = defaultdict(list)
    for chunk in world.storage.rows("metric_chunks"):
        if chunk["run_id"] == run["id"]:
            kept = leases[chunk["lease_id"]]["kept_until_step"]
            for step, value in zip(chunk["steps"], chunk["points"], strict=True):
                if kept is None or step <= kept:
                    points[step].append(value)
    curve = [(step, value) for step in sorted(points) for value in points[step]]
    last = max(finished, key=lambda lease: lease["end_time"])
    true = world.truth.lineage(str(last["id"]))
    if curve != true:
        world.say("S7", f"the curve of {run['id']} is {curve}, and what it stands on is {true}")


def _drained(world: World, lease: Row) -> None:
    """L6: what an attempt that ended in order had written is stored whole."""
    written = world.truth.written.get(str(lease["id"]))
    cursor = world.storage.tables["cursors"].get((lease["id"], 0, "events"))
    stored = cursor["offset_bytes"] if cursor else 0
    orderly = lease["completion"] is not None and lease["outcome"] != "faulted"
    if orderly and written is not None and stored < written.whole:
        world.say("L6", f"{lease['id']} has {written.whole} bytes of events, {stored} are stored")

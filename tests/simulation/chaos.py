"""Injects the faults of a seed into a world, and repairs everything in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace

from coordinator.commands import runs
from coordinator.store.deployment import DatabaseIdentity
from tests.simulation.faults import Fault
from tests.simulation.host import Host
from tests.simulation.network import Way
from tests.simulation.store.storage import Changed, Snapshot
from tests.simulation.world import World


class Chaos:
    """What goes wrong with one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = False
        self._requests = 0
        self._snapshots: dict[Fault, Snapshot] = {}

    def plan(self, fault: Fault) -> None:
        """Lets it happen when its time comes."""
        if fault.kind in ("failover", "restored"):
            self._schedule(max(0.0, fault.at - fault.amount), lambda: self._remember(fault))
        self._schedule(fault.at, lambda: self._happen(fault))

    def _schedule(self, seconds: float, act: Callable[[], None]) -> None:
        """Do it later, unless everything has been repaired by then."""
        self._world.loop.call_later(seconds, lambda: None if self._over else act(), context=Context())

    def _happen(self, fault: Fault) -> None:
        self._world.note(str(fault))
        _KINDS[fault.kind](self, fault)

    def _hosts(self, fault: Fault) -> list[Host]:
        hosts = self._world.hosts
        return hosts if fault.both else [hosts[fault.target % len(hosts)]]

    # Hosts

    def _agent_killed(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            host.kill_agent()
            self._schedule(fault.lasts, host.start_agent)

    def _agent_frozen(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            if (agent := host.agent) is not None:
                agent.freeze()
                self._schedule(fault.lasts, agent.thaw)

    def _stunned(self, fault: Fault) -> None:
        self._agent_frozen(fault)
        cut = replace(fault, kind="partition", lasts=fault.amount, ways=tuple(Way))
        self._schedule(0.5 * fault.lasts, lambda: self._partition(cut))

    def _host_frozen(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            host.freeze()
            self._schedule(fault.lasts, host.thaw)

    def _frozen_at_grant(self, fault: Fault) -> None:
        """With the first lease that it is granted from now on."""
        observers = self._world.storage.observers
        (host,) = self._hosts(fault)

        def granted(changes: Sequence[Changed]) -> None:
            new = [each.after for each in changes if each.table == "places" and each.after and not each.before]
            if any(place["agent"] == host.name for place in new):
                observers.remove(granted)
                self._schedule(fault.amount, lambda: self._host_frozen(fault))

        observers.append(granted)

    def _power_cut(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            host.power_off()
            self._schedule(fault.lasts, host.power_on)

    def _trainer_killed(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            for keeper in host.keepers[:1]:
                keeper.kill_trainer()

    def _shim_killed(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            for keeper in host.keepers[:1]:
                keeper.kill()

    def _leave(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            host.leave()
            self._schedule(fault.lasts, host.start_agent)

    def _detach(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            host.detach()
            self._schedule(fault.lasts, host.start_agent)

    def _cloned(self, fault: Fault) -> None:
        for host in self._hosts(fault):
            clone = host.clone(len(self._world.clones))
            self._world.clones.append(clone)
            clone.start_agent()
            self._schedule(fault.lasts, clone.power_off)

    # The line

    def _partition(self, fault: Fault) -> None:
        network, cut = (
            self._world.network,
            [(host.folder.name, way) for host in self._hosts(fault) for way in fault.ways],
        )
        network.blocked += cut

        def heal() -> None:
            for each in cut:
                network.blocked.remove(each)
            network.unblocked()

        self._schedule(fault.lasts, heal)

    def _line_stalls(self, fault: Fault) -> None:
        """What a host has sent over its present connections arrives after what it sends over new ones."""
        labels = [host.label for host in self._hosts(fault)]
        stalled = [each for each in self._world.network.connections if each.host in labels]
        for each in stalled:
            each.stalled = True
            self._schedule(fault.lasts, each.go_on)

    def _weather(self, fault: Fault) -> None:
        assert fault.weather is not None
        weather = self._world.network.weather = replace(fault.weather)

        def calm() -> None:
            if self._world.network.weather is weather:
                self._world.network.clear_up()

        self._schedule(fault.lasts, calm)

    # The control plane

    def _replica_killed(self, fault: Fault) -> None:
        for index in self._replicas(fault):
            self._world.kill_replica(index)
            self._schedule(fault.lasts, lambda index=index: self._world.start_replica(index))  # type: ignore[misc]

    def _replica_frozen(self, fault: Fault) -> None:
        for index in self._replicas(fault):
            process = self._world.replicas[index].process
            process.freeze()
            self._schedule(fault.lasts, process.thaw)

    def _replicas(self, fault: Fault) -> list[int]:
        return [0, 1] if fault.both else [fault.target % 2]

    def _database_away(self, fault: Fault) -> None:
        self._world.storage.away = True
        self._schedule(fault.lasts, self._database_back)

    def _database_slow(self, fault: Fault) -> None:
        self._world.slowness = fault.amount
        self._schedule(fault.lasts, self._database_fast)

    def _late_heartbeat(self, fault: Fault) -> None:
        self._agent_frozen(fault)
        self._database_slow(replace(fault, lasts=fault.lasts + self._world.timing.ttl))

    def _database_fast(self) -> None:
        self._world.slowness = 0.0

    def _database_back(self) -> None:
        self._world.storage.away = False

    def _commits_unknown(self, fault: Fault) -> None:
        """F8: a transaction commits, and its client does not learn it."""
        self._world.answers_lost = 0.3
        self._schedule(fault.lasts, self._commits_known)

    def _commits_known(self) -> None:
        self._world.answers_lost = 0.0

    def _deaf(self, fault: Fault) -> None:
        """NOTIFY does not arrive."""
        for index in self._replicas(fault):
            replica = self._world.replicas[index]
            replica.cut_notifications(True)
            self._schedule(fault.lasts, lambda replica=replica: replica.cut_notifications(False))  # type: ignore[misc]

    def _database_clock(self, fault: Fault) -> None:
        self._world.clock_steps += fault.amount
        self._world.clock_was_set = True

    def _remember(self, fault: Fault) -> None:
        storage = self._world.storage
        self._snapshots[fault] = storage.snapshot().migrated(storage.identity)

    def _failover(self, fault: Fault) -> None:
        """A standby that lacks the last commits is promoted."""
        identity = self._world.storage.identity
        self._swap(fault, replace(identity, timeline=identity.timeline + 1))

    def _restored(self, fault: Fault) -> None:
        """A dump takes the database's place."""
        identity = self._world.storage.identity
        self._swap(fault, replace(identity, oid=identity.oid + 1))

    def _swap(self, fault: Fault, identity: DatabaseIdentity) -> None:
        """After a while in which there is none."""
        storage = self._world.storage
        storage.away = True
        storage.restore(self._snapshots.pop(fault))
        storage.identity = identity
        self._world.rules.swapped()
        self._schedule(fault.lasts, self._database_back)

    # The rest of the world

    def _store_away(self, fault: Fault) -> None:
        self._world.store.back.clear()
        self._schedule(fault.lasts, self._world.store.back.set)

    def _damaged(self, _: Fault) -> None:
        """F16: the newest checkpoint in the store is gone, and bytes of the newest on one host are wrong."""
        self._world.store.lose_newest()
        self._world.hosts[0].damage_newest()

    def _pause(self, fault: Fault) -> None:
        self._world.do(self._rest(self._run(fault), fault.lasts))

    async def _rest(self, name: str, seconds: float) -> None:
        await self._world.steer(runs.pause, name, "enough")
        await asyncio.sleep(seconds)
        await self._world.steer(runs.resume, name)

    def _cancel(self, fault: Fault) -> None:
        self._world.do(self._world.steer(runs.cancel, self._run(fault), "enough"))

    def _requeue(self, fault: Fault) -> None:
        """The same run again, as one-shot clients do."""
        self._requests += 1
        order = self._world.orders[fault.target % len(self._world.orders)]
        self._world.do(self._world.resubmit(order, self._requests))

    def _run(self, fault: Fault) -> str:
        orders = self._world.orders
        return orders[fault.target % len(orders)].name

    # The end

    def repair_everything(self) -> None:
        """Nothing goes wrong any more, and what went wrong is put right."""
        self._over = True
        world = self._world
        for clone in world.clones:
            clone.power_off()
        world.network.blocked.clear()
        world.network.clear_up()
        world.network.go_on()
        world.store.back.set()
        self._database_back()
        self._database_fast()
        self._commits_known()
        for index, replica in enumerate(world.replicas):
            replica.process.thaw()
            replica.cut_notifications(False)
            world.start_replica(index)
        for host in world.hosts:
            host.thaw()
            if host.off:
                host.power_on()
            host.start_agent()
        for order in world.orders:
            world.do(world.submit_again(order))


#: What is done for each kind of fault.
_KINDS: Mapping[str, Callable[[Chaos, Fault], None]] = {
    "agent_killed": Chaos._agent_killed,
    "agent_frozen": Chaos._agent_frozen,
    "late_heartbeat": Chaos._late_heartbeat,
    "stunned": Chaos._stunned,
    "host_frozen": Chaos._host_frozen,
    "frozen_at_grant": Chaos._frozen_at_grant,
    "power_cut": Chaos._power_cut,
    "trainer_killed": Chaos._trainer_killed,
    "shim_killed": Chaos._shim_killed,
    "leave": Chaos._leave,
    "detach": Chaos._detach,
    "cloned": Chaos._cloned,
    "partition": Chaos._partition,
    "line_stalls": Chaos._line_stalls,
    "weather": Chaos._weather,
    "replica_killed": Chaos._replica_killed,
    "replica_frozen": Chaos._replica_frozen,
    "database_away": Chaos._database_away,
    "database_slow": Chaos._database_slow,
    "commits_unknown": Chaos._commits_unknown,
    "deaf": Chaos._deaf,
    "database_clock": Chaos._database_clock,
    "failover": Chaos._failover,
    "restored": Chaos._restored,
    "store_away": Chaos._store_away,
    "damaged": Chaos._damaged,
    "pause": Chaos._pause,
    "cancel": Chaos._cancel,
    "requeue": Chaos._requeue,
}

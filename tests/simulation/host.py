"""A host: its disk, its clock, the shims that live on it, and one agent process after another, each running the real
code.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

from agent.checkpoints.removing import CheckpointRemover, DiskSpace
from agent.cleanup import OpenAttempts
from agent.context import AttemptContext
from agent.coordinator_client import Contact
from agent.events.inotify import WriteWatcher
from agent.events.spool import Spool
from agent.session import AgentIdentity, Session, grpc_dial
from agent.shim_client.jobs import Job
from agent.shim_client.shims import Shim
from agent.stores.blobs import BlobClient
from agent.stores.input_cache import InputCache
from agent.supervisor import ExitRequest, Supervisor
from relay.errors import RelayError
from relay.timing import LeaseTiming
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc, fleet_pb2
from tests.simulation.folder_store import FolderStore
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.shims import Keeper, LostShim, SimulatedShim, recorded
from tests.simulation.truth import Truth

LEAVING = 2.0  #: seconds that leaving may take
AGAIN = 4.0  #: seconds until an agent that ended is started again


class _Written(WriteWatcher):
    """Notified by whoever writes, instead of by the kernel."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def watch(self, folder: Path) -> bool:
        return True

    def unwatch(self, folder: Path) -> None:
        """Nothing was watched."""

    def wrote(self) -> None:
        """Wake the waiters after a write."""
        self._event.set()

    async def wait_for_write(self) -> None:
        await self._event.wait()
        self._event.clear()


@dataclass(slots=True)
class Place:
    """What all hosts of a simulation share."""

    loop: VirtualLoop
    random: Random
    network: Network
    truth: Truth
    store: FolderStore
    timing: LeaseTiming
    folder: Path
    slots: int = 2  #: of each host
    numbers: itertools.count[int] = field(default_factory=itertools.count)


class Host:
    """One host. What it is called, and what lies on its disk, a clone of it has too."""

    def __init__(self, place: Place, name: str, folder: Path, *, rate: float) -> None:
        self._place = place
        self.loop, self.random, self.truth, self.timing = place.loop, place.random, place.truth, place.timing
        self.name = name
        self.folder = folder
        self.label = folder.name
        folder.mkdir(exist_ok=True)
        self.boots = 0
        self.off = False
        self.frozen = False
        self.boot = f"{name}-boot-0"
        self.keepers: list[Keeper] = []
        self.agent: Process | None = None
        self._orders: asyncio.Queue[ExitRequest] = asyncio.Queue()
        self._notice: _Written | None = None
        self._contact: Contact | None = None
        self._session: Session | None = None
        self._rate = rate
        self._lost: list[LostShim] = []  #: of which only records lie here

    # Its clock

    def now(self) -> float:
        """CLOCK_BOOTTIME, a little fast or slow."""
        return 1000.0 + self.loop.time() * self._rate

    def until(self, moment: float) -> float:
        return (moment - self.now()) / self._rate

    def wrote(self, folder: Path) -> None:
        if self._notice is not None:
            self._notice.wrote()

    # Its agent

    @property
    def runs_agent(self) -> bool:
        """Whether one is there, frozen or not."""
        return self.agent is not None and self.agent.alive

    @property
    def session_id(self) -> str:
        """The session that its agent has, or had last; empty when it has had none."""
        return self._session._state.session_id if self._session is not None else ""

    @property
    def since_contact(self) -> float:
        """Seconds since its agent heard of the coordinator."""
        return self._contact.seconds_without_reply if self._contact is not None else float("inf")

    def start_agent(self) -> None:
        """A new process; nothing happens while one is there."""
        if not self.runs_agent:
            self.agent = Process(self.loop, f"{self.label}/agent-{next(self._place.numbers)}")
            self._orders = asyncio.Queue()
            self.agent.spawn(self._run(self.agent, self._orders))
            if self.frozen:
                self.agent.freeze()

    async def _run(self, process: Process, orders: asyncio.Queue[ExitRequest]) -> None:
        try:
            await self._serve(process, orders)
        except* RelayError:  # replaced by another, or refused
            pass
        except* Exception as crash:
            self.loop.failures.append(f"crash: the agent of {self.label}: {crash.exceptions!r}")
        process.kill()
        self.loop.call_later(AGAIN, self._start_again, process, context=Context())

    def _start_again(self, ended: Process) -> None:
        """As whoever supervises it does, unless the machine was switched off meanwhile."""
        if self.agent is ended:
            self.start_agent()

    async def _serve(self, process: Process, orders: asyncio.Queue[ExitRequest]) -> None:
        """As agent/__main__.py puts it together."""
        place = self._place
        coordinator = place.network.coordinator(self.label, process)
        self._contact = contact = Contact(self.now)
        self._notice = notice = _Written()
        capability = fleet_pb2.Capability(hostname=self.name, cpus=8, memory_bytes=1 << 34, slots=place.slots)
        hello = pb.Hello(agent=f"agents/{self.name}", capability=capability)
        async with coordinator.dial() as calls:
            begun = OpenAttempts(self.folder / "data" / "attempts")
            agent, root, stub = f"agents/{self.name}", self.folder / "root", agents_pb2_grpc.AgentsStub(calls)
            context = AttemptContext(
                agent=agent,
                root=root,
                runtime_dir=self.folder / "sock",
                python="python",
                gpus=False,
                orphan_limit=3600.0,
                environment={},
                stub=stub,
                coordinator=coordinator,
                contact=contact,
                spool=Spool(coordinator, contact, heartbeat=self.timing.heartbeat, watcher=notice),
                blobs=cast(BlobClient, None),  # runs here bring no inputs
                stores={"relay": place.store},
                cache=InputCache(self.folder / "data" / "cache", 1 << 30),
                open_attempts=begun,
                remover=CheckpointRemover(
                    agent, root, stub, coordinator, contact, {"relay": place.store}, begun, self._room
                ),
                shims=self,
                now=self.now,
                wall=self.loop.time,
            )
            supervisor = Supervisor(context, hello, fleet_pb2.Readings, disconnect_limit=24 * 3600.0)
            instance = f"{self.random.getrandbits(128):032x}"
            identity = AgentIdentity(instance, self.boot, self.folder / "data" / "deployment")
            random = Random(self.random.getrandbits(32))
            dial = grpc_dial(coordinator)
            self._session = session = Session(supervisor, identity, contact, dial=dial, now=self.now, random=random)
            await supervisor.run((session.run, context.spool.run, context.remover.run), orders, LEAVING)

    def _room(self, _: Path) -> DiskSpace:
        """The disk is low now and then."""
        return DiskSpace(free=1 << 30 if self.random.random() < 0.2 else 1 << 40, total=1 << 40)

    def leave(self) -> None:
        """SIGTERM to the agent."""
        self._orders.put_nowait(ExitRequest.LEAVE)

    def detach(self) -> None:
        """SIGUSR2 to the agent."""
        self._orders.put_nowait(ExitRequest.DETACH)

    def kill_agent(self) -> None:
        """SIGKILL."""
        if self.agent is not None:
            self.agent.kill()
            self.agent = None

    # Its shims, as the agent has them

    async def start(self, job: Job) -> Shim:
        await asyncio.sleep(self.random.uniform(0.0, 0.02))
        keeper = Keeper(self, job, next(self._place.numbers))
        self.keepers.append(keeper)
        return SimulatedShim(keeper, self._forget)

    async def discover(self) -> list[Shim]:
        return [*(SimulatedShim(keeper, self._forget) for keeper in self.keepers), *self._lost]

    def _forget(self, keeper: Keeper) -> None:
        self.keepers = [each for each in self.keepers if each is not keeper]

    def _lose(self, job: Job, folder: Path, number: int) -> None:
        """Only the record is here."""
        self._lost.append(LostShim(recorded(self, job, folder, number), self._lost.remove))

    # What happens to all of it

    def processes(self) -> list[Process]:
        """The agent, the shims, the trainers."""
        kept = [process for keeper in self.keepers for process in (keeper.process, keeper.trainer_process)]
        return [*([self.agent] if self.agent else []), *kept]

    def freeze(self) -> None:
        """The host is suspended."""
        self.frozen = True
        for process in self.processes():
            process.freeze()

    def thaw(self) -> None:
        """Let it continue."""
        self.frozen = False
        for process in self.processes():
            process.thaw()

    def power_off(self) -> None:
        """All processes are gone; the disk stays."""
        self.off, self.frozen = True, False
        self.kill_agent()
        for keeper in self.keepers:
            keeper.kill()
            self._lose(keeper.job, keeper.job.folder, keeper.number)
        self.keepers = []

    def power_on(self) -> None:
        """On the same disk: another boot, or only another container."""
        self.off = False
        if self.random.random() < 0.7:
            self.boots += 1
            self.boot = f"{self.label}-boot-{self.boots}"
        self.start_agent()

    def damage_newest(self) -> None:
        """Bytes of the newest sealed checkpoint on its disk turn."""
        sealed = sorted(self.folder.glob("root/runs/*/attempts/*/ckpt/step_*/state.json"))
        if sealed:
            sealed[-1].write_bytes(b"turned")

    def clone(self, number: int) -> Host:
        """A machine made of a copy of this one's disk: the same name, another boot, none of its processes."""
        folder = self._place.folder / f"{self.name}-clone-{number}"
        shutil.copytree(self.folder, folder, symlinks=True)
        for link in (folder / "data" / "attempts").glob("*"):
            target = folder / link.readlink().relative_to(self.folder)
            link.unlink()
            link.symlink_to(target)
        made = Host(self._place, self.name, folder, rate=self._rate)
        for keeper in self.keepers:
            made._lose(keeper.job, folder / keeper.job.folder.relative_to(self.folder), keeper.number)
        made.boot = f"{folder.name}-boot-0"
        return made

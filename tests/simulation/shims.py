"""Shims without processes of their own: the real rules of when to ask and when to kill, over a simulated trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Protocol

from agent.shim.kill_deadlines import KillDeadlines
from agent.shim_client.jobs import Exit, Job, Record, ShimGone, ShimUnresponsive
from agent.shim_client.shims import ANSWER, CHECK_INTERVAL, Shim
from relay.timing import LeaseTiming
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.trainer import Trainer
from tests.simulation.truth import Truth


class Machine(Protocol):
    """What a keeper lives on."""

    name: str
    label: str  #: unlike its name, no clone's
    boot: str
    loop: VirtualLoop
    random: Random
    truth: Truth
    timing: LeaseTiming

    def now(self) -> float:
        """CLOCK_BOOTTIME."""

    def until(self, moment: float) -> float:
        """Seconds of the loop until a moment of that clock."""

    def wrote(self, folder: Path) -> None:
        """Wake the waiters after a write."""


class _Recorded(Record):
    """On a machine whose boot id is a simulated one."""

    machine: Machine

    @property
    def rebooted(self) -> bool:
        return self.boot_id != self.machine.boot


def recorded(machine: Machine, job: Job, folder: Path, number: int) -> Record:
    """What lies on a machine's disk of a shim that runs there now."""
    record = _Recorded(
        shim=f"{machine.name}-{number}",
        lease=job.lease,
        folder=str(folder),
        policy=job.policy,
        boot_id=machine.boot,
        started=0.0,
        pid=number,
        start_time=number,
    )
    object.__setattr__(record, "machine", machine)
    return record


class Keeper:
    """One shim and its trainer, each a process."""

    def __init__(self, machine: Machine, job: Job, number: int) -> None:
        self._machine = machine
        self.job = job
        self.number = number
        self.process = Process(machine.loop, f"{machine.name}/shim-{number}")
        self.trainer_process = Process(machine.loop, f"{machine.name}/trainer-{number}")
        self.exit: Exit | None = None
        self.forgotten = False
        self.changed = asyncio.Event()  #: its exit is there, or it is dead
        self._sentence = KillDeadlines(job.to_json(), machine.now())
        self._inbox: list[tuple[str, dict[str, Any], asyncio.Future[Any]]] = []
        self._woken = asyncio.Event()
        self._code: int | None = None
        self._killing = False
        self.record = recorded(machine, job, job.folder, number)
        self.trainer: Trainer | None = None
        if not self._sentence.may_start(machine.now()):
            self.trainer_process.kill()
            self._finish()
        else:
            self.trainer = Trainer(
                job, machine.label, self.trainer_process, machine.truth, machine.random, machine.wrote
            )
            self.trainer_process.spawn(self._train(self.trainer))
        self.process.spawn(self._keep())

    async def _train(self, trainer: Trainer) -> None:
        self._code = await trainer.run()
        self._end_trainer()
        self._woken.set()

    def _end_trainer(self) -> None:
        """Nothing of it runs any more."""
        if self.trainer is not None and self.trainer.execution.ended is None:
            self.trainer.execution.ended = self._machine.loop.time()
        self.trainer_process.kill()

    def kill_trainer(self) -> None:
        """SIGKILL from wherever."""
        self._end_trainer()
        self._woken.set()

    def kill(self) -> None:
        """SIGKILL to the shim; its trainer dies with it (PR_SET_PDEATHSIG)."""
        self.process.kill()
        self._end_trainer()
        self.changed.set()

    async def ask(self, operation: str, arguments: dict[str, Any]) -> Any:
        """A request of the agent's; ShimGone, or ShimUnresponsive when it does not answer in time."""
        if not self.process.alive or self.forgotten:
            raise ShimGone(f"{self.record.shim} is gone")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inbox.append((operation, arguments, answer))
        self._woken.set()
        try:
            async with asyncio.timeout(ANSWER):
                return await answer
        except TimeoutError:
            if not self.process.alive:
                raise ShimGone(f"{self.record.shim} is gone") from None
            raise ShimUnresponsive(f"{self.record.shim} does not answer") from None

    async def _keep(self) -> None:
        while not self.forgotten:
            self._woken.clear()
            self._answer_all()
            await self._do_what_is_due()
            await self._rest()

    def _answer_all(self) -> None:
        inbox, self._inbox = self._inbox, []
        for operation, arguments, answer in inbox:
            self._sentence.contact(self._machine.now())
            if not answer.done():
                answer.set_result(self._answer(operation, arguments))

    def _answer(self, operation: str, arguments: dict[str, Any]) -> Any:
        now = self._machine.now()
        match operation:
            case "stop" if self.exit is None and self._sentence.stop(now, arguments["grace"], arguments["reason"]):
                self._ask_trainer()
            case "kill" if self.exit is None:
                self._sentence.kill(now, arguments["reason"])
                if arguments["reason"] == "lease lost":
                    self._machine.truth.dropped(self.job.lease.rpartition("/")[2])
            case "trust":
                return {"trusted": self._sentence.renew(arguments["deadline"]) and self.exit is None}
            case "forget":
                self.forgotten = True
        return {}

    def _ask_trainer(self) -> None:
        if self.trainer is not None and self.trainer_process.alive:
            self.trainer.ask()

    async def _do_what_is_due(self) -> None:
        if self.exit is not None:
            return
        if not self.trainer_process.alive:
            self._finish()
        elif self._sentence.pass_time(self._machine.now()):
            self._ask_trainer()
        elif self._sentence.kill_reason is not None:
            await asyncio.sleep(self._machine.random.uniform(0.0, 0.9 * self._machine.timing.kill))
            self._end_trainer()
            self._finish()

    async def _rest(self) -> None:
        """Until woken, or something is due; then the scheduler takes its time."""
        moment = float("inf") if self.exit is not None else self._sentence.next_moment
        if not self._woken.is_set() and self._sentence.kill_reason is not None and self.exit is None:
            return
        wait = self._machine.until(moment)
        try:
            async with asyncio.timeout(wait if wait < 1e8 else None):
                await self._woken.wait()
        except TimeoutError:
            await asyncio.sleep(self._machine.random.uniform(0.0, 0.9 * self._machine.timing.margin))

    def _finish(self) -> None:
        sentence = self._sentence
        self.exit = Exit(
            lease=self.job.lease,
            code=self._code,
            signal=None if self._code is not None else 9,
            stop_reason=sentence.stop_reason,
            kill_reason=sentence.kill_reason,
            kill_began=sentence.kill_began,
            trust=sentence.trust,
            trust_lost=sentence.trust_lost,
        )
        self.changed.set()


class SimulatedShim(Shim):
    """The agent's handle on a keeper."""

    def __init__(self, keeper: Keeper, gone: Callable[[Keeper], None]) -> None:
        super().__init__(Path("/simulated") / keeper.record.shim, keeper.record)
        self._keeper = keeper
        self._gone = gone

    async def _ask(self, operation: str, **arguments: object) -> Any:
        return await self._keeper.ask(operation, arguments)

    async def wait(self) -> Exit:
        """Reap it when it is dead: what it left is killed first."""
        keeper = self._keeper
        while keeper.exit is None:
            if not keeper.process.alive:
                keeper.kill_trainer()
                return Exit(lease=keeper.job.lease, lost=True)
            try:
                async with asyncio.timeout(CHECK_INTERVAL):
                    await keeper.changed.wait()
            except TimeoutError:
                continue
        return keeper.exit

    async def forget(self) -> None:
        if self._keeper.process.alive and not self._keeper.forgotten:
            await self._keeper.ask("forget", {})
        self._gone(self._keeper)


class LostShim(Shim):
    """What a disk knows of a shim that ended with an earlier boot, or runs on the machine this one is a clone of."""

    def __init__(self, record: Record, gone: Callable[[LostShim], None]) -> None:
        super().__init__(Path("/simulated") / record.shim, record)
        self._gone = gone

    async def _ask(self, operation: str, **arguments: object) -> Any:
        raise ShimGone(f"{self.record.shim} is gone")

    async def wait(self) -> Exit:
        return Exit(lease=self.record.lease, lost=True)

    async def forget(self) -> None:
        self._gone(self)

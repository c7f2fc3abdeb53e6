"""A trainer: a program under the contract (events.jsonl, step folders), as a coroutine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from agent.shim_client.jobs import Job
from tests.simulation.loop import Process
from tests.simulation.truth import BEGIN, Execution, Truth, Written, advanced, loss

STOPPED = 143


class Trainer:
    """One attempt's. `wrote` is called with the folder in which something was written."""

    def __init__(
        self, job: Job, host: str, process: Process, truth: Truth, random: Random, wrote: Callable[[Path], None]
    ) -> None:
        self._truth = truth
        self._random = random
        self._wrote = wrote
        self._stop = asyncio.Event()
        self.lease = job.lease.rpartition("/")[2]
        self._events = Path(job.env["RELAY_EVENTS"])
        self._staging = Path(job.env["RELAY_CKPT_STAGING_ROOT"])
        self._steps = int(job.env["SIM_STEPS"])
        self._every = int(job.env["SIM_SAVE_EVERY"])
        self._pace = float(job.env["SIM_PACE"])
        self._fails = float(job.env["SIM_FAILS"])
        self._broken = False
        self.step, self._chain, parent = self._resumed(job.env.get("RELAY_RESUME_FROM"))
        self.written = truth.written.setdefault(self.lease, Written(self._events))
        self.execution = Execution(
            run=job.env["RELAY_RUN_ID"],
            lease=self.lease,
            host=host,
            policy=job.policy,
            process=process,
            began=asyncio.get_running_loop().time(),
            resumed_step=self.step,
            parent=parent,
        )
        truth.begin(self.execution, self.execution.began)

    def _resumed(self, folder: str | None) -> tuple[int, str, tuple[str, int] | None]:
        if folder is None:
            return 0, BEGIN, None
        try:
            state = json.loads(Path(folder, "state.json").read_text())
        except ValueError:  # it was damaged after it was verified: the program cannot load it
            self._broken = True
            return 0, BEGIN, None
        step, lease, chain = int(state["step"]), str(state["lease"]), str(state["chain"])
        if self._truth.states.get((lease, step)) != chain:
            self._truth.wrong.append(f"S4: {self.lease} resumed from a state that nobody saved: {lease} step {step}")
        return step, chain, (lease, step)

    def ask(self) -> None:
        """SIGTERM."""
        self.execution.asked += 1
        if self.execution.asked > 1:
            self._truth.wrong.append(f"S10: the trainer of {self.lease} was asked to stop twice")
        self._stop.set()

    async def run(self) -> int:
        """To its end; the exit code."""
        if self._broken:
            return 1
        if self.step and self._truth.evaluates:
            await self._evaluate()  # the attempt before may not have come to it
        while self.step < self._steps:
            if await self._pausing(self._random.uniform(0.5, 1.5) * self._pace):
                await asyncio.sleep(self._random.choice([0.0, 0.0, 2.0]) * self._random.random())  # a step to its end
                await self._save()
                return STOPPED
            if self._random.random() < self._fails:
                return 1
            await self._make_step()
            if self.step % self._every == 0 and self.step < self._steps:
                await self._save()
        await self._save()
        self.execution.finished = True
        return 0

    async def _pausing(self, seconds: float) -> bool:
        """True when it was asked to stop meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                return await self._stop.wait()
        except TimeoutError:
            return False

    async def _make_step(self) -> None:
        self._truth.check_alone(self.execution, asyncio.get_running_loop().time())
        self.step += 1
        self._chain = advanced(self._chain, self.step, self.lease)
        await self._report({"type": "metric", "step": self.step, "values": {"train_loss": loss(self._chain)}})
        self.written.points.append((self.step, loss(self._chain)))
        self.written.point_ends.append(self.written.size)

    async def _save(self) -> None:
        """Again at a step that was saved before, it changes nothing."""
        if (self.lease, self.step) in self._truth.states:
            return
        half = self._staging / f"step_{self.step:08d}.tmp"
        half.mkdir()
        state = {"step": self.step, "lease": self.lease, "chain": self._chain}
        (half / "state.json").write_text(json.dumps(state))
        await asyncio.sleep(self._random.uniform(0.0, 0.2))
        self._truth.states[self.lease, self.step] = self._chain
        half.rename(self._staging / f"step_{self.step:08d}")
        due = {"evaluation_due": True} if self._truth.evaluates else {}
        await self._report({"type": "checkpoint", "step": self.step, "path": f"step_{self.step:08d}", **due})
        self.written.checkpoints[self.step] = self.written.size
        if not self._truth.evaluates:
            return
        await asyncio.sleep(self._random.choice([0.0, 0.0, 1.0]) * self._random.random())
        await self._evaluate()

    async def _evaluate(self) -> None:
        """Report what the weights of this step are worth, which takes a while and may be cut."""
        await self._report({"type": "metric", "step": self.step, "values": {"eval_loss": loss(self._chain)}})
        self.written.evaluations[self.step] = loss(self._chain), self.written.size

    async def _report(self, event: dict[str, object]) -> None:
        """Now and then the line takes two writes, and a kill between them tears it."""
        line = json.dumps(event).encode() + b"\n"
        if self._random.random() < 0.1:
            self._append(line[:10])
            await asyncio.sleep(0.01)
            self._append(line[10:])
        else:
            self._append(line)
        self.written.size += len(line)

    def _append(self, data: bytes) -> None:
        with self._events.open("ab", buffering=0) as file:
            file.write(data)
        self._wrote(self._events.parent)

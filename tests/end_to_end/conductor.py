"""The conductor of gated trainers: says how far they may go, and keeps the true record of what they did."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(eq=False, slots=True)
class Trainer:
    """One trainer that has called. Times are the event loop's."""

    run: str
    lease: str  #: the beginning of its id
    attempt: int
    resumed_from: int
    pid: int
    began: float
    ended: float = math.inf  #: its end of the line is closed, which the kernel does when it is dead
    frozen: bool = False  #: a test has stopped it for a while
    terms: int = 0  #: how often it got a SIGTERM, as it reports at its end


@dataclass(slots=True)
class Conductor:
    """Trainers may do steps up to `limit`; what they did is in `steps`, in order."""

    address: str
    limit: int = 0
    failing: set[int] = field(default_factory=set)  #: attempts that fail at their next step
    trainers: list[Trainer] = field(default_factory=list)
    steps: list[tuple[Trainer, int]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def done(self) -> list[tuple[int, int]]:
        """(attempt, step), in order."""
        return [(trainer.attempt, step) for trainer, step in self.steps]

    async def allow(self, step: int) -> None:
        """Lets every trainer do steps up to this one."""
        async with self.changed:
            self.limit = max(self.limit, step)
            self.changed.notify_all()

    async def hold_trainers_after(self, step: int) -> None:
        """Lets no trainer begin a step after this one any more."""
        async with self.changed:
            self.limit = min(self.limit, step)

    async def fail(self, attempt: int) -> None:
        """Lets the trainer of an attempt fail where it stands."""
        async with self.changed:
            self.failing.add(attempt)
            self.changed.notify_all()

    async def until(self, fact: Callable[[Conductor], object]) -> None:
        """Waits for a fact about the record."""
        async with self.changed:
            await self.changed.wait_for(lambda: fact(self))

    async def reached(self, step: int, *, attempt: int | None = None) -> None:
        """Waits until a trainer (of this attempt) has done this step."""
        await self.until(lambda me: any(s >= step and attempt in (None, a) for a, s in me.done))

    async def called(self, attempt: int) -> Trainer:
        """Waits for the trainer of an attempt."""
        await self.until(lambda me: any(trainer.attempt == attempt for trainer in me.trainers))
        return next(trainer for trainer in self.trainers if trainer.attempt == attempt)

    async def ended(self, trainer: Trainer) -> None:
        """Waits until a trainer is gone."""
        await self.until(lambda _: trainer.ended < math.inf)

    def steps_done_twice(self) -> list[int]:
        """Steps that were done more than once."""
        steps = [step for _, step in self.done]
        return sorted({step for step in steps if steps.count(step) > 1})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One trainer, until it is gone, which may be before its first word."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            if hello := await reader.readline():
                await self._follow(json.loads(hello), reader, writer)

    async def _follow(
        self, hello: Mapping[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        trainer = Trainer(hello["run"], hello["lease"], hello["attempt"], hello["from"], hello["pid"], now())
        async with self.changed:
            self.trainers.append(trainer)
            self.changed.notify_all()
        answering: asyncio.Task[None] | None = None
        try:
            while line := await reader.readline():  # also while it waits for leave: its death is noticed at once
                said = json.loads(line)
                trainer.terms = said.get("terms", 0)
                if step := said.get("done"):
                    await self._note(trainer, step)
                if step := said.get("ask"):
                    answering = asyncio.create_task(self._answer(trainer, step, writer))
        finally:
            if answering is not None:
                answering.cancel()
            async with self.changed:
                trainer.ended = now()
                self.changed.notify_all()

    async def _note(self, trainer: Trainer, step: int) -> None:
        async with self.changed:
            self.steps.append((trainer, step))
            self.changed.notify_all()

    async def _answer(self, trainer: Trainer, step: int, writer: asyncio.StreamWriter) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.limit >= step or trainer.attempt in self.failing)
        writer.write(b"!" if trainer.attempt in self.failing else b"+")


@asynccontextmanager
async def conducting(path: Path) -> AsyncIterator[Conductor]:
    """A conductor at a Unix socket, which no fault of the network touches."""
    conductor = Conductor(str(path))
    calls: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            calls.add(group.create_task(conductor.serve(reader, writer)))

        server = await asyncio.start_unix_server(accept, path)
        try:
            yield conductor
        finally:
            server.close()
            for task in calls:
                task.cancel()


def now() -> float:
    """Seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()


def true_loss(step: int) -> float:
    """The loss of a step, if every step before it was done once and in order."""
    state = hashlib.sha256(b"start").digest()
    for _ in range(step):
        state = hashlib.sha256(state + b"step").digest()
    return int(state.hex()[:8], 16) / 2**32

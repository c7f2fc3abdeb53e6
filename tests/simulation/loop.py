"""An event loop with virtual time whose order a seed decides, and the processes that live on it.

Nothing waits: when no callback is ready, the clock jumps to the next timer. Callbacks that are ready at the same moment
run in an order that the seed shuffles. A process is everything that was started under it: it can be frozen (SIGSTOP, a
suspended host), and what becomes ready in the meantime runs when it is thawed; a killed one is frozen forever.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")
_PROCESS: ContextVar[Process] = ContextVar("process")


class Stalled(Exception):
    """Nothing is ready, and nothing ever will be."""


class Process:
    """What can be frozen and killed as one. `ended` callbacks are called when it is killed."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self._loop = loop
        self.name = name
        self.alive = True
        self.frozen = False
        self.was_frozen = False  #: once in its life
        self.thawed_at = float("-inf")
        self.parked: list[asyncio.Handle] = []
        loop.processes.append(self)

    def __repr__(self) -> str:
        return self.name

    @property
    def running(self) -> bool:
        """Whether its code runs."""
        return self.alive and not self.frozen

    def context(self) -> Context:
        """One under which tasks are this process's."""
        context = copy_context()
        context.run(_PROCESS.set, self)
        return context

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this process."""
        return self._loop.create_task(work, context=self.context())

    def freeze(self) -> None:
        """From now on none of its code runs."""
        self.frozen = self.alive
        self.was_frozen |= self.alive

    def thaw(self) -> None:
        """Let it continue where it was."""
        if self.alive and self.frozen:
            self.frozen = False
            self.thawed_at = self._loop.time()
            self._loop.resume(self)

    def kill(self) -> None:
        """Never run its code again; whatever it had started stays as it is."""
        self.alive, self.frozen = False, False


def current_process() -> Process | None:
    """Return the process whose code this is; None for code of no process (the network, the faults)."""
    return _PROCESS.get(None)


class _Nothing(selectors.BaseSelector):
    """A selector on which nothing ever happens."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)


class _Task(asyncio.Task[Any]):
    """Hashed by its number: sets of tasks are walked through in the same order in every run of a seed."""

    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(self._numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs as fast as it can. `blocking` gives the seconds that work in a thread takes."""

    _ready: Any

    def __init__(self, random: Random, blocking: Callable[[], float]) -> None:
        super().__init__(_Nothing())
        self._random = random
        self._blocking = blocking
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self.processes: list[Process] = []
        self.over = False  #: the simulation has ended: what still runs only winds up
        _Task._numbers = itertools.count()
        self._tasks: list[_Task] = []  #: killed processes' tasks must not be collected, or their `finally` would run
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._failed)
        self.failures: list[str] = []

    def time(self) -> float:
        return self._now

    def _make_task(self, _: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        task = _Task(work, loop=self, **more)
        self._tasks.append(task)
        return task

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            self._jump()
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        batch = list(ready)
        ready.clear()
        if len(batch) > 1:
            self._random.shuffle(batch)
        for handle in batch:
            if not handle.cancelled() and not self._held(handle):
                handle._run()

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if timers:
            self._now = max(self._now, timers[0][0])
        elif not self._stopping:  # type: ignore[attr-defined]
            raise Stalled

    def _held(self, handle: asyncio.Handle) -> bool:
        """Keeps what a process that does not run would have done."""
        process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
        if process is None or process.running or self.over:
            return False
        process.parked.append(handle)
        return True

    def resume(self, process: Process) -> None:
        """What a process left waiting is ready now."""
        self._ready.extend(process.parked)
        process.parked = []

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Threads are moments at which something blocking is done, also for a caller that has given up on it."""
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if self.over:
                future.cancel()
                return
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self._blocking(), work)
        return future

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Record the error of a task whose result no one awaited."""
        if not self.over:
            self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def wind_up(self) -> None:
        """Ends every task there is; nothing of what they do then has an effect."""
        self.over = True
        for process in self.processes:
            self.resume(process)
        while tasks := [task for task in asyncio.all_tasks(self) if not task.done()]:
            for task in sorted(tasks, key=hash):
                task.cancel()
            self.run_until_complete(asyncio.wait(tasks))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

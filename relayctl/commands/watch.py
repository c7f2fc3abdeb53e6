"""Watching runs: a bar, the newest metrics and what happens on a terminal; plain lines elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import ENDED, RelayClient, short
from relayctl.commands.exits import ExitCode
from relayctl.output.format import fitted, printable
from relayctl.output.terminal import Terminal, note, say
from relayctl.output.views import end_line, event_line, metrics_cell, progress_line

_WIDE = 100  #: columns of a terminal from which on the bar has room for everything
_PLAIN_PAUSE = 15.0  #: seconds between two progress lines off a terminal

_EXITS = {
    pb.Run.SUCCEEDED: ExitCode.OK,
    pb.Run.FAILED: ExitCode.RUN_FAILED,
    pb.Run.CANCELLED: ExitCode.RUN_CANCELLED,
}


class Screen(Protocol):
    """Where a watched run is shown."""

    def event(self, event: pb.RunEvent) -> None: ...

    def progress(self, progress: pb.Progress) -> None: ...

    def close(self) -> None: ...


class PlainScreen:
    """Lines for files, pipes and dumb terminals."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def event(self, event: pb.RunEvent) -> None:
        say(event_line(event))

    def progress(self, progress: pb.Progress) -> None:
        now = asyncio.get_running_loop().time()
        done = progress.total > 0 and progress.step >= progress.total
        if done or now - self._last >= _PLAIN_PAUSE:
            self._last = now
            say(f"{'':8}  {progress_line(progress)}")

    def close(self) -> None:
        return


class LiveScreen:
    """A bar that stays at the bottom, with what happens scrolling past above it."""

    def __init__(self, name: str, width: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        wide, whole = width >= _WIDE, Column(no_wrap=True)
        self._most = 3 if wide else 1
        self._bar = Progress(
            TextColumn("{task.fields[name]}", style="bold", markup=False, table_column=whole),
            BarColumn(bar_width=40 if wide else 10),
            TextColumn("{task.completed:.0f}/{task.fields[end]}", table_column=whole),
            *([TimeElapsedColumn()] if wide else []),
            TimeRemainingColumn(table_column=whole),
            TextColumn("{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self._task = self._bar.add_task("", total=None, name=fitted(name, max(width // 4, 8)), end="?", metrics="")
        self._bar.start()

    def event(self, event: pb.RunEvent) -> None:
        style = {"warning": "yellow", "error": "red"}.get(event.level)
        self._bar.console.print(event_line(event), style=style, markup=False, highlight=False)

    def progress(self, progress: pb.Progress) -> None:
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.total or None,
            end=str(progress.total or "?"),
            metrics=metrics_cell(progress.metrics, most=self._most),
        )

    def close(self) -> None:
        self._bar.stop()


async def watch(client: RelayClient, run: str, terminal: Terminal) -> ExitCode:
    """Shows a run until it ends; the exit code says how it ended."""
    name = short((await client.run(run)).name)
    client.line.patience = 600.0  # a watcher waits out a coordinator's restart
    screen: Screen = LiveScreen(name, terminal.width or 80) if terminal.interactive else PlainScreen()
    client.line.on_trouble = lambda why: note(
        f"no contact ({printable(why.partition(';')[0])}); the run goes on, trying again …"
    )
    try:
        async for update in client.watch(name):
            if update.HasField("event"):
                screen.event(update.event)
            else:
                screen.progress(update.progress)
    finally:
        screen.close()
    ended = await client.run(name)
    say(end_line(ended))
    return exit_of(ended)


def exit_of(run: pb.Run) -> ExitCode:
    """What a script is told of a run's end."""
    return _EXITS.get(run.state, ExitCode.OK)


async def wait(client: RelayClient, runs: Sequence[str], seconds: float | None) -> ExitCode:
    """Waits until all have ended, saying how each did; the worst end decides the exit code."""
    client.line.patience = 600.0
    try:
        async with asyncio.timeout(seconds):
            ends = await asyncio.gather(*(_end_of(client, run) for run in runs))
    except TimeoutError:
        note(f"not ended in time: {', '.join(runs)}" if len(runs) == 1 else "not all of them have ended in time")
        return ExitCode.TIMED_OUT
    codes = {exit_of(run) for run in ends}
    return next((code for code in (ExitCode.RUN_FAILED, ExitCode.RUN_CANCELLED) if code in codes), ExitCode.OK)


async def _end_of(client: RelayClient, run: str) -> pb.Run:
    found = await client.run(run)
    if found.state not in ENDED:
        async for _ in client.watch(run):
            pass
        found = await client.run(run)
    say(end_line(found))
    return found

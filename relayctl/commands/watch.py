"""`relayctl watch` and `wait`: follow runs until they end; the exit code says how they ended.

On a terminal a watched run has a bar with its newest metrics, and its events scroll past above; elsewhere it is lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Protocol

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import ENDED, RelayClient, shorten_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import RunName, parse_seconds
from relayctl.commands.runner import run_command
from relayctl.output.format import cut_to_width, make_printable, to_datetime
from relayctl.output.runs import describe_end, format_metrics, format_progress
from relayctl.output.terminal import Terminal, note, say

RETRY_TIMEOUT = 600.0  #: seconds that a watcher waits for a coordinator that does not answer any more
_WIDE = 100  #: columns of a terminal in which the bar has room for everything
_PLAIN_PAUSE = 15.0  #: seconds between two lines of progress off a terminal
_EVENT_MARKS = {"warning": "! ", "error": "!! "}
_EXITS = {
    pb.Run.SUCCEEDED: ExitCode.OK,
    pb.Run.FAILED: ExitCode.RUN_FAILED,
    pb.Run.CANCELLED: ExitCode.RUN_CANCELLED,
}


def watch(context: typer.Context, run: RunName) -> None:
    """Watch a run until it ends; the exit code says how it ended."""
    on_interrupt = f"the run continues; watch it again with: relayctl watch {run}"
    run_command(context, partial(watch_run, run=run), on_interrupt)


def wait(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", show_default=False)],
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Give up after this time, e.g. 30m.", show_default=False)
    ] = None,
) -> None:
    """Wait until runs have ended; the exit code says how they ended.

    It is 10 if one failed, 11 if one was cancelled, 12 if the time is up.
    """
    run_command(context, partial(_wait, runs, timeout), "the runs continue without you")


class Screen(Protocol):
    """Where a watched run is shown."""

    def show_event(self, event: pb.RunEvent) -> None: ...

    def show_progress(self, progress: pb.Progress) -> None: ...

    def close(self) -> None: ...


class PlainScreen:
    """Prints lines, for files, pipes and terminals that cannot move their cursor."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def show_event(self, event: pb.RunEvent) -> None:
        say(format_event(event))

    def show_progress(self, progress: pb.Progress) -> None:
        now = asyncio.get_running_loop().time()
        done = progress.total > 0 and progress.step >= progress.total
        if done or now - self._last >= _PLAIN_PAUSE:
            self._last = now
            say(f"{'':8}  {_format_progress_line(progress)}")

    def close(self) -> None:
        return


class LiveScreen:
    """Keeps a bar at the bottom of a terminal while events scroll past above it."""

    def __init__(self, name: str, width: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        wide, whole = width >= _WIDE, Column(no_wrap=True)
        self._metrics = 3 if wide else 1
        self._bar = Progress(
            TextColumn("{task.fields[name]}", style="bold", markup=False, table_column=whole),
            BarColumn(bar_width=40 if wide else 10),
            TextColumn("{task.completed:.0f}/{task.fields[end]}", table_column=whole),
            *([TimeElapsedColumn()] if wide else []),
            TimeRemainingColumn(table_column=whole),
            TextColumn("{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        shown_name = cut_to_width(name, max(width // 4, 8))
        self._task = self._bar.add_task("", total=None, name=shown_name, end="?", metrics="")
        self._bar.start()

    def show_event(self, event: pb.RunEvent) -> None:
        style = {"warning": "yellow", "error": "red"}.get(event.level)
        self._bar.console.print(format_event(event), style=style, markup=False, highlight=False)

    def show_progress(self, progress: pb.Progress) -> None:
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.total or None,
            end=str(progress.total or "?"),
            metrics=format_metrics(progress.metrics, most=self._metrics),
        )

    def close(self) -> None:
        self._bar.stop()


def open_screen(name: str, terminal: Terminal) -> Screen:
    """Return the screen for a run: a live one on a terminal, plain lines elsewhere."""
    return LiveScreen(name, terminal.width or 80) if terminal.interactive else PlainScreen()


async def watch_run(client: RelayClient, terminal: Terminal, run: str) -> ExitCode:
    """Show a run until it ends, and return the exit code that says how it ended."""
    name = shorten_name((await client.get_run(run)).name)
    client.channel.retry_timeout = RETRY_TIMEOUT
    client.channel.on_disconnect = _note_disconnect
    screen = open_screen(name, terminal)
    try:
        async for update in client.watch_run(name):
            if update.HasField("event"):
                screen.show_event(update.event)
            else:
                screen.show_progress(update.progress)
    finally:
        screen.close()
    ended = await client.get_run(name)
    say(describe_end(ended))
    return get_exit_code(ended)


def _note_disconnect(why: str) -> None:
    note(f"no contact ({make_printable(why.partition(';')[0])}); the run continues, trying again …")


def get_exit_code(run: pb.Run) -> ExitCode:
    """Return the exit code that says how a run ended."""
    return _EXITS.get(run.state, ExitCode.OK)


def format_event(event: pb.RunEvent) -> str:
    """Format an event of a run on one line: `10:48:03  granted to host-a (attempt 1)`."""
    text = make_printable(event.text) or pb.RunEvent.Kind.Name(event.kind).lower()
    clock = to_datetime(event.time).astimezone().strftime("%H:%M:%S")
    return f"{clock}  {_EVENT_MARKS.get(event.level, '')}{text}"


def _format_progress_line(progress: pb.Progress) -> str:
    return "   ".join(filter(None, [f"step {format_progress(progress)}", format_metrics(progress.metrics)]))


async def _wait(runs: Sequence[str], within: str | None, client: RelayClient, terminal: Terminal) -> ExitCode:
    client.channel.retry_timeout = RETRY_TIMEOUT
    try:
        async with asyncio.timeout(parse_seconds(within)):
            ended = await asyncio.gather(*(_wait_for_end(client, run) for run in runs))
    except TimeoutError:
        note(f"not ended in time: {', '.join(runs)}" if len(runs) == 1 else "not all of them have ended in time")
        return ExitCode.TIMED_OUT
    codes = {get_exit_code(run) for run in ended}
    return next((code for code in (ExitCode.RUN_FAILED, ExitCode.RUN_CANCELLED) if code in codes), ExitCode.OK)


async def _wait_for_end(client: RelayClient, name: str) -> pb.Run:
    run = await client.get_run(name)
    if run.state not in ENDED:
        async for _ in client.watch_run(name):
            pass
        run = await client.get_run(name)
    say(describe_end(run))
    return run

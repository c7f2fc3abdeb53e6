"""Where output goes: a terminal gets bars, colours and its width; a file or a pipe gets plain lines, never cut."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from relayctl.client.artifacts import Progress


@dataclass(frozen=True, slots=True)
class Terminal:
    """What stdout and stderr are. A terminal that can move no cursor counts as none."""

    interactive: bool  #: stdout is a terminal
    attended: bool  #: stderr is one, so progress may be shown there
    width: int | None

    @classmethod
    def current(cls) -> Terminal:
        moving = os.environ.get("TERM") not in ("dumb", "unknown")
        interactive = moving and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if interactive else None
        return cls(interactive, moving and sys.stderr.isatty(), width)


def say(text: str) -> None:
    """What was asked for, on stdout."""
    print(text, flush=True)


def note(text: str) -> None:
    """What goes along with it, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def byte_bars(terminal: Terminal) -> Iterator[Callable[[str, int], Progress]]:
    """Gives a bar for each stage on a terminal, and nothing elsewhere or for what is small."""
    if not terminal.attended:
        yield lambda title, size: lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def stage(title: str, size: int) -> Progress:
            if size < 8 << 20:
                return lambda done: None
            task = bars.add_task(title, total=size)
            return lambda done: bars.advance(task, done)

        yield stage

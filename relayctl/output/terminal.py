"""Where output goes: a terminal gets progress bars and its width; a file or a pipe gets plain lines, never cut."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from relayctl.client.artifacts import StartProgress
from storage.base import Progress, ignore_progress

_SMALL = 8 << 20  #: bytes; what is smaller gets no progress bar


@dataclass(frozen=True, slots=True)
class Terminal:
    """What stdout and stderr are; a terminal that cannot move its cursor counts as none."""

    interactive: bool  #: stdout is a terminal
    attended: bool  #: stderr is a terminal, so progress may be shown there
    width: int | None  #: columns of stdout's terminal

    @classmethod
    def current(cls) -> Terminal:
        """Look at stdout, stderr and TERM."""
        moving = os.environ.get("TERM") not in ("dumb", "unknown")
        interactive = moving and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if interactive else None
        return cls(interactive, moving and sys.stderr.isatty(), width)


def say(text: str) -> None:
    """Print to stdout what the user asked for."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print a remark or an error to stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def show_progress_bars(terminal: Terminal) -> Iterator[StartProgress]:
    """Provide a function that starts a progress bar; it shows nothing off a terminal and for what is small."""
    if not terminal.attended:
        yield lambda title, size: ignore_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def start_progress(title: str, size: int) -> Progress:
            if size < _SMALL:
                return ignore_progress
            task = bars.add_task(title, total=size)
            return lambda done: bars.advance(task, done)

        yield start_progress

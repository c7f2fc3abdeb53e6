"""`relayctl logs`: what the trainer printed, put together into lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format, RunName, parse_seconds
from relayctl.commands.runner import run_command
from relayctl.commands.watch import RETRY_TIMEOUT, get_exit_code
from relayctl.output.format import to_datetime
from relayctl.output.serialize import Output, format_value
from relayctl.output.terminal import Terminal, note, say

MAX_LINE = 1 << 20  #: bytes; a longer line is printed in pieces


@dataclass(frozen=True, slots=True)
class LogSelection:
    """Which lines to print, and whether to go on until the run ends."""

    run: str
    follow: bool
    lines: int  #: only the last so many; 0 means all
    since: str | None
    attempt: int  #: 0 means all
    node: int | None

    @property
    def narrows(self) -> bool:
        """Whether there may be lines that do not match."""
        return bool(self.since or self.attempt or self.node)


def print_logs(
    context: typer.Context,
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    lines: Annotated[int, typer.Option("-n", min=0, metavar="N", help="Print only the last N lines; 0 is all.")] = 0,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Print only lines of the last, e.g. 10m.", show_default=False),
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Print when each line arrived.")] = False,
    attempt: Annotated[int, typer.Option(min=0, metavar="N", help="Print only lines of this attempt; 0 is all.")] = 0,
    node: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Print only lines of this node.", show_default=False)
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Print what the trainer printed."""
    selection = LogSelection(run, follow, lines, since, attempt, node)
    on_interrupt = f"the run continues; follow it again with: relayctl logs -f {run}" if follow else ""
    run_command(context, partial(_print, selection, LinePrinter(output, timestamps)), on_interrupt)


async def _print(selection: LogSelection, printer: LinePrinter, client: RelayClient, terminal: Terminal) -> ExitCode:
    if selection.follow:
        client.channel.retry_timeout = RETRY_TIMEOUT
    reader = LineReader()
    kept: list[LogLine] = []
    pieces = client.read_logs(
        selection.run,
        attempt=selection.attempt,
        node=selection.node,
        since=parse_seconds(selection.since),
        tail_lines=selection.lines,
        follow=selection.follow,
    )
    async for piece in pieces:
        for line in reader.read(piece):
            if selection.follow or not selection.lines:
                printer.print_line(line)
            else:
                kept.append(line)
    for line in [*kept, *reader.unfinished_lines()][-selection.lines :]:
        printer.print_line(line)
    printer.note_if_nothing(selection)
    return get_exit_code(await client.get_run(selection.run)) if selection.follow else ExitCode.OK


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that the trainer printed, when it arrived, and where it was printed."""

    time: datetime
    attempt: int
    node: int
    source: str
    text: str


@dataclass(slots=True)
class LineReader:
    """Puts pieces of logs, which may cut lines and characters in two, together into whole lines."""

    _rests: dict[tuple[int, int, str], bytes] = field(default_factory=dict)
    _times: dict[tuple[int, int, str], datetime] = field(default_factory=dict)

    def read(self, piece: pb.ReadLogsResponse) -> Iterator[LogLine]:
        """Yield the lines that end in this piece."""
        source = (piece.attempt, piece.node, piece.source)
        self._times[source] = to_datetime(piece.time)
        *lines, rest = (self._rests.pop(source, b"") + piece.data).split(b"\n")
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], b""
        self._rests[source] = rest
        for line in lines:
            yield self._line(source, line)

    def unfinished_lines(self) -> Iterator[LogLine]:
        """Yield what was printed last and has no newline at its end."""
        for source, text in self._rests.items():
            if text:
                yield self._line(source, text)

    def _line(self, source: tuple[int, int, str], text: bytes) -> LogLine:
        return LogLine(self._times[source], *source, text.decode(errors="replace").rstrip("\r"))


@dataclass(slots=True)
class LinePrinter:
    """Prints lines for users or for programs, with a heading where another attempt or node begins."""

    output: Output
    timestamps: bool
    _printed: tuple[int, int] | None = None  #: attempt and node of the last line

    def print_line(self, line: LogLine) -> None:
        """Print one line."""
        if self.output.for_programs:
            say(format_value(_to_plain(line), Output.JSONL))
            return
        if self._printed not in (None, (line.attempt, line.node)):
            note(f"--- attempt {line.attempt}, node {line.node} ---")
        self._printed = (line.attempt, line.node)
        say(format_with_time(line) if self.timestamps else line.text)

    def note_if_nothing(self, selection: LogSelection) -> None:
        """Tell a user that there was no line to print."""
        if self._printed is None and not self.output.for_programs:
            note(f"{selection.run} has printed nothing{' there' if selection.narrows else ''}")


def format_with_time(line: LogLine) -> str:
    """Return the line after the local time at which it arrived."""
    return f"{line.time.astimezone().isoformat(timespec='seconds')}  {line.text}"


def _to_plain(line: LogLine) -> dict[str, str | int]:
    return {
        "time": line.time.isoformat(),
        "attempt": line.attempt,
        "node": line.node,
        "source": line.source,
        "text": line.text,
    }

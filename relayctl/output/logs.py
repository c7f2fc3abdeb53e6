"""What trainers print, put together into lines again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from relay.v1 import runs_pb2 as pb
from relayctl.output.views import moment

MAX_LINE = 1 << 20  #: bytes; a longer line is given out in pieces


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line and where it came from."""

    time: datetime
    attempt: int
    node: int
    source: str
    text: str


@dataclass(slots=True)
class LineReader:
    """Takes pieces, which may cut lines and characters in two, and gives whole lines as they end."""

    _rests: dict[tuple[int, int, str], bytes] = field(default_factory=dict)
    _last: dict[tuple[int, int, str], datetime] = field(default_factory=dict)

    def take(self, piece: pb.ReadLogsResponse) -> Iterator[LogLine]:
        """The lines that this piece finishes."""
        source = (piece.attempt, piece.node, piece.source)
        self._last[source] = moment(piece.time)
        *lines, rest = (self._rests.pop(source, b"") + piece.data).split(b"\n")
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], b""
        self._rests[source] = rest
        for line in lines:
            yield self._line(source, line)

    def rest(self) -> Iterator[LogLine]:
        """What was printed without a newline at the end."""
        for source, text in self._rests.items():
            if text:
                yield self._line(source, text)

    def _line(self, source: tuple[int, int, str], text: bytes) -> LogLine:
        return LogLine(self._last[source], *source, text.decode(errors="replace").rstrip("\r"))


def heading(line: LogLine) -> str:
    """What stands above the lines of another attempt or node."""
    return f"--- attempt {line.attempt}, node {line.node} ---"


def stamped(line: LogLine) -> str:
    """The line with its time before it."""
    return f"{line.time.astimezone().isoformat(timespec='seconds')}  {line.text}"

"""Times, sizes, numbers, tables and blocks as texts for users. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len, set_cell_size

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(count: int) -> str:
    """Format a number of bytes: `1.2 MiB`."""
    power = min(int(math.log(count, 1024)), len(_UNITS) - 1) if count > 0 else 0
    return f"{count} B" if power == 0 else f"{count / 1024**power:.1f} {_UNITS[power]}"


def format_span(seconds: float) -> str:
    """Format a span of time: `45 s`, `3 min`, `2 h 5 min`, `4 d 3 h`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_ago(then: datetime, now: datetime) -> str:
    """Format how long ago a time was: `3 min ago`."""
    seconds = (now - then).total_seconds()
    return "just now" if seconds < 1 else f"{format_span(seconds)} ago"


def format_age(stamp: Timestamp, now: datetime) -> str:
    """Format the time since a timestamp: `3 min`."""
    return format_span((now - to_datetime(stamp)).total_seconds())


def to_datetime(stamp: Timestamp) -> datetime:
    """Convert a timestamp to a time in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def format_number(value: float) -> str:
    """Format a metric's value in a few characters: `0.4512`, `3.00e-05`, `128`."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def format_count(amount: int, one: str, many: str | None = None) -> str:
    """Format a number of things: `1 file`, `3 files`."""
    return f"{amount} {one if amount == 1 else many or one + 's'}"


def format_pairs(pairs: Mapping[str, str]) -> str:
    """Format labels and the like: `kind=test,team=nlp`."""
    return ",".join(f"{key}={pairs[key]}" for key in sorted(pairs))


def make_printable(text: str) -> str:
    """Put a text that somebody else wrote on one line, without characters that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def cut_to_width(text: str, width: int) -> str:
    """Cut a text to at most `width` columns of a terminal and mark the cut."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Align columns; lines are cut at their ends to `width` columns, and not at all without one."""
    lines = [[make_printable(cell) or "-" for cell in row] for row in rows]
    columns = [max(map(cell_len, column)) for column in zip(headers, *lines, strict=True)]
    return "\n".join(_format_row(cells, columns, width) for cells in [list(headers), *lines])


def _format_row(cells: Sequence[str], columns: Sequence[int], width: int | None) -> str:
    padded = (cell + " " * (column - cell_len(cell)) for cell, column in zip(cells, columns, strict=True))
    text = "  ".join(padded).rstrip()
    return cut_to_width(text, width) if width else text


def format_block(entries: Sequence[tuple[str, str]]) -> str:
    """Align `name   value` lines, without the entries whose value is empty; further lines of a value are indented."""
    shown = [(name, value) for name, value in entries if value]
    indent = max((len(name) for name, _ in shown), default=0) + 3
    return "\n".join(f"{name:<{indent}}" + value.replace("\n", "\n" + " " * indent) for name, value in shown)

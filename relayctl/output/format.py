"""Times, sizes and tables for people."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from datetime import datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: int) -> str:
    """`1.2 MiB`."""
    power = min(int(math.log(count, 1024)), len(_UNITS) - 1) if count > 0 else 0
    return f"{count} B" if power == 0 else f"{count / 1024**power:.1f} {_UNITS[power]}"


def span(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 5 min`, `4 d 3 h`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(then: datetime, now: datetime) -> str:
    """`3 min ago`."""
    seconds = (now - then).total_seconds()
    return "just now" if seconds < 1 else f"{span(seconds)} ago"


def number(value: float) -> str:
    """A metric's value, short: `0.4512`, `3.00e-05`, `128`."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def count(amount: int, one: str, many: str | None = None) -> str:
    """`1 file`, `3 files`."""
    return f"{amount} {one if amount == 1 else many or one + 's'}"


def width_of(text: str) -> int:
    """Columns that the text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fitted(text: str, width: int) -> str:
    """The text in at most `width` columns, the cut marked."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return text + "…"


def printable(text: str) -> str:
    """What somebody else wrote, on one line and without control characters that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Aligned columns; only the last one is cut to `width`, and nothing is cut without one."""
    lines = [[printable(cell) or "-" for cell in row] for row in rows]
    columns = [max(map(width_of, column)) for column in zip(headers, *lines, strict=True)]
    return "\n".join(_row(cells, columns, width) for cells in [list(headers), *lines])


def _row(cells: Sequence[str], columns: Sequence[int], width: int | None) -> str:
    text = "  ".join(cell + " " * (column - width_of(cell)) for cell, column in zip(cells, columns, strict=True))
    return fitted(text.rstrip(), width) if width else text.rstrip()


def block(entries: Sequence[tuple[str, str]]) -> str:
    """`name   value` lines, aligned; entries without a value are left out, further lines of a value are indented."""
    shown = [(name, value) for name, value in entries if value]
    indent = max((len(name) for name, _ in shown), default=0) + 3
    return "\n".join(f"{name:<{indent}}" + value.replace("\n", "\n" + " " * indent) for name, value in shown)

"""Turns samples into figures, and figures into a table."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title; prints as Markdown that also reads well in a terminal."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [_line(self.columns, widths), _line(["-" * width for width in widths], widths)]
        lines += [_line(row, widths) for row in self.rows]
        return "\n".join([f"\n{self.title}\n", *lines, *(f"\n{note}" for note in self.notes), ""])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"


def p99(values: Sequence[float]) -> float:
    """The 99th percentile, interpolated within what was seen."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and the two samples that enclose the true one with this confidence, whatever the distribution."""

    low: float
    median: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Sequence[float]) -> Interval:
    """The narrowest pair of order statistics with CONFIDENCE; of fewer than six values the whole range, with less."""
    ordered, count = sorted(values), len(values)
    cut = max((k for k in range(count // 2) if _coverage(k, count) >= CONFIDENCE), default=0)
    return Interval(ordered[cut], statistics.median(ordered), ordered[count - 1 - cut], _coverage(cut, count))


def _coverage(cut: int, count: int) -> float:
    """Probability that the true median lies within `count` samples but for `cut` on either side."""
    outside: int = sum(math.comb(count, k) for k in range(cut + 1))
    return max(0.0, 1 - 2 * outside / 2.0**count)


def seconds(stamp: Timestamp) -> float:
    """A moment of the contract since the epoch."""
    return stamp.ToNanoseconds() / 1e9


def spread(values: Sequence[float], unit: str = "s") -> str:
    """`12.10 s (11.80 to 12.90)`: the median and the range of a few samples."""
    around = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f} {unit}{around}"


def machine() -> str:
    """Where and when: a figure means nothing without it."""
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return f"{date.today()}, {_processor()}, {cores()} cores, Python {platform.python_version()}{load}"


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())

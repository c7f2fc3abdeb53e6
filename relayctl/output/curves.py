"""A run's metrics as curves, one for each metric however many attempts made it; drawn in the terminal and as a PNG."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from relay.v1 import runs_pb2 as pb
from relayctl.output.format import format_count, format_number

_WIDTH, _WIDEST = 80, 120  #: columns of a plot off a terminal, and at most
_ROWS, _LABELLED_ROWS = 16, (0, 5, 10, 15)  #: rows of a plot, and those that have their value at the left
_AT_ONCE = 4  #: plots when no metric was named and none is one that users look at first
_PLOTTED_FIRST = ("train_loss", "loss", "eval_loss", "reward", "train_reward")
_BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True, slots=True)
class MetricCurve:
    """One metric's points in the order of their steps, and the steps at which a later attempt took over."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    restarts: Sequence[int]


def join_segments(segments: Iterable[pb.ReadMetricsResponse]) -> list[MetricCurve]:
    """Join the segments that are not superseded into one curve for each metric, sorted by name."""
    by_name: dict[str, list[pb.ReadMetricsResponse]] = {}
    for segment in segments:
        if not segment.superseded and segment.steps:
            by_name.setdefault(segment.metric, []).append(segment)
    return [_join_metric(name, by_name[name]) for name in sorted(by_name)]


def _join_metric(name: str, segments: Sequence[pb.ReadMetricsResponse]) -> MetricCurve:
    ordered = sorted(segments, key=lambda segment: segment.steps[0])
    restarts = [b.steps[0] for a, b in pairwise(ordered) if a.lease != b.lease]
    steps = [step for segment in ordered for step in segment.steps]
    return MetricCurve(name, steps, [value for segment in ordered for value in segment.values], restarts)


def choose_curves(curves: Sequence[MetricCurve], named: Sequence[str]) -> list[MetricCurve]:
    """Choose the curves to plot: those of the named metrics, else of the metrics that users look at first."""
    plottable = [curve for curve in curves if any(math.isfinite(value) for value in curve.values)]
    if named:
        return plottable
    first = [curve for curve in plottable if curve.name in _PLOTTED_FIRST]
    return first or [curve for curve in plottable if len(curve.steps) > 1][:_AT_ONCE]


def plot_in_terminal(curves: Sequence[MetricCurve], width: int | None) -> str:
    """Draw curves as text of at most `width` columns, one under the other."""
    return "\n\n".join(_plot_text(curve, min(width or _WIDTH, _WIDEST)) for curve in curves)


def _plot_text(curve: MetricCurve, width: int) -> str:
    points = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]
    labels = _make_row_labels(low, high)
    margin = max(map(len, labels))
    columns = width - margin - 2

    def column_of(step: float) -> float:
        return (step - first) / max(last - first, 1) * (columns * 2 - 1)

    dots = [(column_of(step), (high - value) / ((high - low) or 1.0) * (_ROWS * 4 - 1)) for step, value in points]
    marks = {int(column_of(step)) // 2 for step in curve.restarts}
    rows = _draw_braille(dots, columns, marks)
    body = [f"{label:>{margin}} {'┤' if label else '│'}{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    restarts = f"  ({format_count(len(curve.restarts), 'restart')}, marked ┊)" if curve.restarts else ""
    foot = f"{'step':>{margin}}  {first}{last:>{columns - len(str(first))}}"
    return "\n".join([f"{curve.name}{restarts}", *body, foot])


def _make_row_labels(low: float, high: float) -> list[str]:
    """Return the labels at the left of a plot's rows; a flat curve has its value at the first row only."""
    shown = _LABELLED_ROWS if high > low else _LABELLED_ROWS[:1]
    values = {row: high - (high - low) * row / (_ROWS - 1) for row in shown}
    return [format_number(values[row]) if row in values else "" for row in range(_ROWS)]


def _draw_braille(dots: Sequence[tuple[float, float]], columns: int, marks: Container[int]) -> list[str]:
    """Draw a line through dots, two by four of which make a character, and a dotted bar in the marked columns."""
    cells: dict[tuple[int, int], int] = {}
    for (x0, y0), (x1, y1) in pairwise([dots[0], *dots]):
        pieces = max(int(abs(x1 - x0)), int(abs(y1 - y0)), 1)
        for piece in range(pieces + 1):
            x, y = round(x0 + (x1 - x0) * piece / pieces), round(y0 + (y1 - y0) * piece / pieces)
            cells[y // 4, x // 2] = cells.get((y // 4, x // 2), 0) | _BRAILLE_BITS[y % 4][x % 2]

    def character(row: int, column: int) -> str:
        if bits := cells.get((row, column)):
            return chr(0x2800 + bits)
        return "┊" if column in marks else " "

    return ["".join(character(row, column) for column in range(columns)) for row in range(_ROWS)]


def write_png(curves: Sequence[MetricCurve], target: Path, title: str) -> None:
    """Draw curves into a PNG file, a panel for each. Blocking: call it in a thread."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(curves) + 0.6), layout="constrained")
    panels = figure.subplots(len(curves), 1, squeeze=False)
    for curve, (axes,) in zip(curves, panels, strict=True):
        axes.plot(curve.steps, curve.values, linewidth=1.3)
        bad = [step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)]
        for step in bad:
            axes.axvline(step, color="tab:red", linewidth=0.8, label="not finite" if step == bad[0] else None)
        for attempt, step in enumerate(curve.restarts, 2):
            axes.axvline(step, color="tab:gray", linestyle="--", linewidth=1)
            axes.annotate(f"attempt {attempt}", (step, 1), xycoords=("data", "axes fraction"), fontsize=8, va="bottom")
        axes.set_ylabel(curve.name)
        axes.grid(alpha=0.25)
    panels[-1][0].set_xlabel("step")
    figure.suptitle(title)
    figure.savefig(target, format="png", dpi=120)

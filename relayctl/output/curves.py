"""Curves: in the terminal, and as a PNG. One curve for each metric; where a later attempt took over is marked."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from itertools import pairwise
from pathlib import Path

from relayctl.output.format import count, number
from relayctl.output.views import Series

_WIDTH, _WIDEST, _ROWS = 80, 120, 14  #: columns and rows of a plot in the terminal
_AT_ONCE = 4  #: plots when no metric was named and none is one that people look at first
_BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def in_terminal(curves: Sequence[Series], width: int | None) -> str:
    """The curves as text, one under the other."""
    return "\n\n".join(_text_plot(curve, min(width or _WIDTH, _WIDEST)) for curve in curves)


def _text_plot(curve: Series, width: int) -> str:
    points = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]
    labels = [number(high), *[""] * (_ROWS - 2), number(low)]
    margin = max(map(len, labels))
    columns = width - margin - 2

    def across(step: float) -> float:
        return (step - first) / max(last - first, 1) * (columns * 2 - 1)

    dots = [(across(step), (high - value) / ((high - low) or 1.0) * (_ROWS * 4 - 1)) for step, value in points]
    marks = {int(across(step)) // 2 for step in curve.restarts}
    rows = _braille(dots, columns, marks)
    body = [f"{label:>{margin}} ┤{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    title = f"{curve.name}{_restart_words(curve)}"
    foot = f"{'step':>{margin}}  {first}{last:>{columns - len(str(first))}}"
    return "\n".join([title, *body, foot])


def _braille(dots: Sequence[tuple[float, float]], columns: int, marks: Container[int]) -> list[str]:
    """A line through the dots, two by four of them to a character; a dotted bar in the marked columns."""
    cells: dict[tuple[int, int], int] = {}
    for (x0, y0), (x1, y1) in pairwise([dots[0], *dots]):
        pieces = max(int(abs(x1 - x0)), int(abs(y1 - y0)), 1)
        for piece in range(pieces + 1):
            x, y = round(x0 + (x1 - x0) * piece / pieces), round(y0 + (y1 - y0) * piece / pieces)
            cells[y // 4, x // 2] = cells.get((y // 4, x // 2), 0) | _BRAILLE_BITS[y % 4][x % 2]

    def cell(row: int, column: int) -> str:
        if bits := cells.get((row, column)):
            return chr(0x2800 + bits)
        return "┊" if column in marks else " "

    return ["".join(cell(row, column) for column in range(columns)) for row in range(_ROWS)]


def _restart_words(curve: Series) -> str:
    return f"  ({count(len(curve.restarts), 'restart')}, marked ┊)" if curve.restarts else ""


def chosen(curves: Sequence[Series], named: Sequence[str]) -> list[Series]:
    """The metrics to plot: those named, else the ones people look at first."""
    plottable = [curve for curve in curves if any(math.isfinite(value) for value in curve.values)]
    if named:
        return plottable
    first = [c for c in plottable if c.name in ("train_loss", "loss", "eval_loss", "reward", "train_reward")]
    return first or [c for c in plottable if len(c.steps) > 1][:_AT_ONCE]


def png(curves: Sequence[Series], target: Path, title: str) -> None:
    """The curves as one picture, a panel for each. Blocking: call it in a thread."""
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

"""Curves: in the terminal, and as a PNG. One curve for each metric; where a later attempt took over is marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from relayctl.views import Series
from relayctl.words import count

_SHAPE = (72, 16)  #: columns and rows of a plot in the terminal
_AT_ONCE = 4  #: plots in the terminal when no metric was named
_POINTS = 2000  #: of a curve in the terminal, at most


def in_terminal(curves: Sequence[Series], width: int | None) -> str:
    """The curves as text, one under the other."""
    return "\n\n".join(_text_plot(curve, min(width or _SHAPE[0], 120)) for curve in curves)


def _text_plot(curve: Series, width: int) -> str:
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, _SHAPE[1])
    steps, values = _thinned(curve)
    plotext.plot(steps, values, marker="braille")
    for step in curve.restarts:
        plotext.vline(step)
    plotext.title(f"{curve.name}{_restart_words(curve)}")
    plotext.xlabel("step")
    return "\n".join(line.rstrip() for line in str(plotext.build()).splitlines())


def _thinned(curve: Series) -> tuple[list[int], list[float]]:
    """Finite points, every n-th of them where there are too many to tell apart."""
    points = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    points = points[:: max(len(points) // _POINTS, 1)]
    return [step for step, _ in points], [value for _, value in points]


def _restart_words(curve: Series) -> str:
    return f"  ({count(len(curve.restarts), 'restart')}, marked)" if curve.restarts else ""


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
        for number, step in enumerate(curve.restarts, 2):
            axes.axvline(step, color="tab:gray", linestyle="--", linewidth=1)
            axes.annotate(f"attempt {number}", (step, 1), xycoords=("data", "axes fraction"), fontsize=8, va="bottom")
        axes.set_ylabel(curve.name)
        axes.grid(alpha=0.25)
    panels[-1][0].set_xlabel("step")
    figure.suptitle(title)
    figure.savefig(target, format="png", dpi=120)

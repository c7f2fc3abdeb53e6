"""The curve of a run that was trained alone, as a picture. No ML library: whoever started the ranks draws it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

Curves = Mapping[str, Mapping[int, float]]  #: metric → step → value

_FIRST = ("train_loss", "eval_loss", "reward", "eval_reward")  #: what people look at first, where it is there


def draw(home: Path) -> Path | None:
    """`curve.png` in the run's folder `home`, of all its attempts; None where there is nothing to draw, or no
    matplotlib.
    """
    shown = {name: points for name, points in curves(home).items() if name in _FIRST and len(points) > 1}
    try:
        import matplotlib
    except ImportError:
        return None
    if not shown:
        return None
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(shown) + 0.6), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)
    for (name, points), (axes,) in zip(shown.items(), panels, strict=True):
        axes.plot(list(points), list(points.values()), linewidth=1.3)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    panels[-1][0].set_xlabel("step")
    figure.suptitle(home.name)
    figure.savefig(home / "curve.png", format="png", dpi=120)
    return home / "curve.png"


def curves(home: Path) -> Curves:
    """Of each metric the value at every step; where an attempt did a step again, its value is the one."""
    found: dict[str, dict[int, float]] = {}
    for attempt in sorted(home.glob("attempts/*/events.jsonl"), key=lambda path: int(path.parent.name)):
        for step, name, value in _points(attempt):
            found.setdefault(name, {})[step] = value
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def _points(events: Path) -> Iterator[tuple[int, str, float]]:
    for line in events.read_text().splitlines():
        if line.startswith('{"type": "metric"') and line.endswith("}"):  # else the line was torn
            event = json.loads(line)
            finite = {name: float(value) for name, value in event["values"].items() if math.isfinite(float(value))}
            yield from ((event["step"], name, value) for name, value in finite.items())

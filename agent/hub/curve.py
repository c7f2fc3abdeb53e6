"""`python -m agent.hub.curve PICTURE`: draws the losses that stdin has as JSON, where matplotlib is installed.

`{"train_loss": [[step, value], …], …}`. Exit 3 where there is no matplotlib, or nothing to draw.
"""

import importlib.util
import json
import sys

NOTHING = 3


def main(picture: str) -> int:
    """Draw the picture and return the exit code."""
    series = {name: points for name, points in json.load(sys.stdin).items() if points}
    if not series or importlib.util.find_spec("matplotlib") is None:
        return NOTHING
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in sorted(series.items()):
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 20 else "")
    axes.set_xlabel("step")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, format="png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

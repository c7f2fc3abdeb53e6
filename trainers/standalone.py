"""Training with no coordinator: the same contract, played by the run's own folder.

runs/<name>/ckpt/step_00000100     whole checkpoints; started again, the run goes on from the newest
runs/<name>/attempts/1/events.jsonl runs/<name>/output                 the result
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from runfile import RunFile, metric_names
from trainers import checkpoints
from trainers.environment import Contract

Curves = Mapping[str, Mapping[int, float]]  #: metric → step → value


def contract(run: RunFile, run_file: Path, root: Path, environ: Mapping[str, str] = os.environ) -> Contract:
    """The next attempt at the run under `root` (its folders are made)."""
    name = run.name or re.sub(r"[^a-z0-9._-]+", "-", run_file.stem.lower()).strip("-._") or "run"
    home = (root / name).absolute()
    attempts = [int(folder.name) for folder in home.glob("attempts/*") if folder.name.isdigit()]
    attempt = max(attempts, default=0) + 1
    folder = home / "attempts" / str(attempt)
    folder.mkdir(parents=True)
    resolved = folder / "run.json"
    resolved.write_text(_placed(run, run_file.parent).to_json())
    newest = checkpoints.newest(home / "ckpt")
    return Contract(
        run_id=name,
        attempt=attempt,
        run_file=resolved,
        output=home / "output",
        staging=home / "ckpt",
        events=folder / "events.jsonl",
        resume_from=newest.folder if newest else None,
        pins=dict(_pins(home)),
        gpus=int(environ["RELAY_GPUS"])
        if "RELAY_GPUS" in environ
        else min(visible_gpus(environ), run.resources.gpus_per_node),
        keep_last=run.checkpoint.keep.last,
    )


def _placed(run: RunFile, base: Path) -> RunFile:
    """The run with a local model's path made absolute: its result is loaded from elsewhere on this machine."""
    name = run.model and run.model.name_or_path
    if run.model is None or not name or not (base / Path(name).expanduser()).is_dir():
        return run
    path = os.path.abspath(base / Path(name).expanduser())
    return run.model_copy(update={"model": run.model.model_copy(update={"name_or_path": path})})


def _pins(home: Path) -> Iterator[tuple[str, str]]:
    """What earlier attempts resolved; a later pair of the same name is the earlier attempt's, which holds."""
    for events in sorted(home.glob("attempts/*/events.jsonl"), key=lambda path: int(path.parent.name), reverse=True):
        for line in events.read_text().splitlines():
            if line.startswith('{"type": "pin"') and line.endswith("}"):
                event = json.loads(line)
                yield event["name"], event["value"]


def visible_gpus(environ: Mapping[str, str] = os.environ) -> int:
    """NVIDIA GPUs this process may use, counted without a CUDA library."""
    if (named := _named_gpus(environ)) is not None:
        return len(named)
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def first_gpus(count: int, environ: Mapping[str, str] = os.environ) -> str:
    """CUDA_VISIBLE_DEVICES for `count` processes: one that sees more than its own would use them all."""
    named = _named_gpus(environ)
    return ",".join(map(str, range(count)) if named is None else named[:count])


def _named_gpus(environ: Mapping[str, str]) -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES says; None when it says nothing."""
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return None
    return [device for device in environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip() not in ("", "-1")]


def draw(home: Path) -> Path | None:
    """`curve.png` in the run's folder `home`, of all its attempts; None where there is nothing to draw, or no
    matplotlib.
    """
    shown = {name: points for name, points in curves(home).items() if name in metric_names.FIRST and len(points) > 1}
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

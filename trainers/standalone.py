"""Training without a coordinator: the run's own folder takes the place of the host.

runs/<name>/ckpt/step_00000100       whole checkpoints; the same command again resumes from the newest
runs/<name>/attempts/1/events.jsonl  what the attempt logged
runs/<name>/output                   the result
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from runfile import RunFile, metric_names
from trainers import checkpoints
from trainers.environment import AttemptEnvironment

Curves = Mapping[str, Mapping[int, float]]  #: metric → step → value


def prepare_attempt(
    run: RunFile, run_file: Path, root: Path, environ: Mapping[str, str] = os.environ
) -> AttemptEnvironment:
    """Create the folders of the run's next attempt below `root`, and describe the attempt."""
    name = run.name or re.sub(r"[^a-z0-9._-]+", "-", run_file.stem.lower()).strip("-._") or "run"
    home = (root / name).absolute()
    attempts = [int(folder.name) for folder in home.glob("attempts/*") if folder.name.isdigit()]
    attempt = max(attempts, default=0) + 1
    folder = home / "attempts" / str(attempt)
    folder.mkdir(parents=True)
    resolved = folder / "run.json"
    resolved.write_text(_with_absolute_model(run, run_file.parent).to_json())
    newest = checkpoints.newest_checkpoint(home / "ckpt")
    return AttemptEnvironment(
        run_id=name,
        attempt=attempt,
        run_file=resolved,
        output=home / "output",
        staging=home / "ckpt",
        events=folder / "events.jsonl",
        resume_from=newest.folder if newest else None,
        pins=dict(_read_pins(home)),
        gpus=int(environ["RELAY_GPUS"])
        if "RELAY_GPUS" in environ
        else min(count_visible_gpus(environ), run.resources.gpus_per_node),
        keep_last=run.checkpoint.keep.last,
    )


def _with_absolute_model(run: RunFile, base: Path) -> RunFile:
    """Return the run with an absolute path to a local model, so that its result can be loaded from any folder."""
    name = run.model and run.model.name_or_path
    if run.model is None or not name or not (base / Path(name).expanduser()).is_dir():
        return run
    path = os.path.abspath(base / Path(name).expanduser())
    return run.model_copy(update={"model": run.model.model_copy(update={"name_or_path": path})})


def _read_pins(home: Path) -> Iterator[tuple[str, str]]:
    """Yield the pins of earlier attempts, the newest attempt first: in a dict the value of the oldest
    attempt remains.
    """
    for events in sorted(home.glob("attempts/*/events.jsonl"), key=lambda path: int(path.parent.name), reverse=True):
        for line in events.read_text().splitlines():
            if line.startswith('{"type": "pin"') and line.endswith("}"):
                event = json.loads(line)
                yield event["name"], event["value"]


def count_visible_gpus(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of NVIDIA GPUs that this process may use, counted without a CUDA library."""
    if (named := _listed_gpus(environ)) is not None:
        return len(named)
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def select_gpus(count: int, environ: Mapping[str, str] = os.environ) -> str:
    """Return CUDA_VISIBLE_DEVICES for `count` processes. A process that sees more GPUs than its own would
    use them all.
    """
    named = _listed_gpus(environ)
    return ",".join(map(str, range(count)) if named is None else named[:count])


def _listed_gpus(environ: Mapping[str, str]) -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES lists, or None where it is not set."""
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return None
    return [device for device in environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip() not in ("", "-1")]


def draw_curve(home: Path) -> Path | None:
    """Draw the curves of all attempts as `curve.png` in the run's folder `home`. Return None without points or
    matplotlib.
    """
    shown = {
        name: points for name, points in read_curves(home).items() if name in metric_names.FIRST and len(points) > 1
    }
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


def read_curves(home: Path) -> Curves:
    """Return every metric's value at each step. Where several attempts trained a step, the value of the newest one
    counts.
    """
    found: dict[str, dict[int, float]] = {}
    for attempt in sorted(home.glob("attempts/*/events.jsonl"), key=lambda path: int(path.parent.name)):
        for step, name, value in _read_points(attempt):
            found.setdefault(name, {})[step] = value
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def _read_points(events: Path) -> Iterator[tuple[int, str, float]]:
    """Yield (step, metric, value) from the whole lines of an event file."""
    for line in events.read_text().splitlines():
        if line.startswith('{"type": "metric"') and line.endswith("}"):  # else the line was torn
            event = json.loads(line)
            finite = {name: float(value) for name, value in event["values"].items() if math.isfinite(float(value))}
            yield from ((event["step"], name, value) for name, value in finite.items())

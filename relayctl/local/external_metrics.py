"""The curve of a training that ran without Relay, as event lines of the contract, up to a step.

It is read from the folder's `events.jsonl`, or from the `log_history` of the Hugging Face Trainer. The names of metrics
become those that Relay's own trainers report (`runfile.metric_names`), so that a run that is continued has one curve.
Blocking: call it in a thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relayctl.local.external_checkpoints import ExternalCheckpoint, NotImportable, require_inside
from runfile import format_size, metric_names

EVENTS = "events.jsonl"
MAX_CURVE = 64 << 20  #: bytes of event lines that a coordinator takes
MAX_LINE = 256 * 1024  #: bytes of one event line; a longer one is not read
#: Types of event lines that have no points.
_NOT_OF_THE_CURVE = ("message", "pin", "resume", "sample", "upload_failing")


@dataclass(slots=True)
class ExternalCurve:
    """A curve as event lines, with counts of what is in them and the metrics of each checkpoint."""

    origin: str = ""  #: the file that it was read from
    lines: list[bytes] = field(default_factory=list)
    metrics: dict[str, int] = field(default_factory=dict)  #: the number of points of each metric
    checkpoint_metrics: dict[int, dict[str, float]] = field(default_factory=dict)  #: by step
    unread: int = 0  #: lines and entries that were not understood

    @property
    def points(self) -> int:
        """The number of points of all metrics."""
        return sum(self.metrics.values())

    @property
    def content(self) -> bytes:
        """The event lines, each with its newline."""
        return b"".join(self.lines)

    def add(self, line: bytes, step: int, values: Mapping[str, Any]) -> None:
        """Add a line with points of one step."""
        self.lines.append(line + b"\n")
        for name in values:
            self.metrics[name] = self.metrics.get(name, 0) + 1
        results = {
            name: float(value)
            for name, value in values.items()
            if metric_names.is_evaluation_result(name) and _is_finite(value)
        }
        if results:
            self.checkpoint_metrics.setdefault(step, {}).update(results)


def read_curve(root: Path, checkpoints: Sequence[ExternalCheckpoint]) -> ExternalCurve:
    """Read the curve of the training in a folder, up to the newest of its checkpoints; raises NotImportable."""
    head, events = checkpoints[-1], root / EVENTS
    curve = ExternalCurve()
    if events.exists():
        require_inside(events, root)
        curve = _read_events(events, head.step)
    if not curve.points and head.log_history is not None:
        unread, curve = curve.unread, _read_history(checkpoints)
        curve.unread += unread
    if (total := sum(map(len, curve.lines))) > MAX_CURVE:
        raise NotImportable(
            f"{root}: the curve is {total} bytes of event lines; at most {format_size(MAX_CURVE)} are taken"
        )
    return curve


def _read_events(file: Path, head: int) -> ExternalCurve:
    """Read event lines, and leave out the points after the step `head`."""
    curve = ExternalCurve(EVENTS)
    with file.open("rb") as opened:
        for raw in opened:
            if line := raw.strip():
                _add_event(curve, line, head)
    return curve


def _add_event(curve: ExternalCurve, line: bytes, head: int) -> None:
    event = _parse_event(line)
    step, kind, values = _read_step(event), event.get("type"), event.get("values")
    if kind == "metric" and step is not None and isinstance(values, dict):
        if step <= head:
            curve.add(line, step, values)
    elif kind == "progress" and step is not None:
        if step <= head:
            curve.lines.append(line + b"\n")
    elif kind == "checkpoint" and step is not None:
        metrics = event.get("metrics")
        items = metrics.items() if isinstance(metrics, dict) else ()
        finite = {name: float(value) for name, value in items if _is_finite(value)}
        curve.checkpoint_metrics.setdefault(step, {}).update(finite)
    elif kind not in _NOT_OF_THE_CURVE:
        curve.unread += 1


def _read_step(event: Mapping[str, Any]) -> int | None:
    step = event.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _parse_event(line: bytes) -> Mapping[str, Any]:
    if len(line) > MAX_LINE:
        return {}
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _read_history(checkpoints: Sequence[ExternalCheckpoint]) -> ExternalCurve:
    """Read the newest checkpoint's log history. It has no times: a point gets that of the first checkpoint after it."""
    head, curve = checkpoints[-1], ExternalCurve(f"{checkpoints[-1].folder.name}/trainer_state.json")
    for entry in head.log_history or ():
        step, values = _read_step(entry), _rename_values(entry)
        if step is None or step > head.step or not values:
            curve.unread += 1
            continue
        saved = next(each.time for each in checkpoints if each.step >= step)
        line = {"type": "metric", "step": step, "time": _rfc3339(saved), "values": values}
        curve.add(json.dumps(line).encode(), step, values)
    if head.total_steps:
        line = {"type": "progress", "step": head.step, "total": head.total_steps, "time": _rfc3339(head.time)}
        curve.lines.append(json.dumps(line).encode() + b"\n")
    for each in checkpoints:
        curve.checkpoint_metrics[each.step] = _list_evaluation_results(each)
    return curve


def _list_evaluation_results(checkpoint: ExternalCheckpoint) -> dict[str, float]:
    """Return the results of evaluations at the checkpoint's step, from its own log history."""
    logs = (entry for entry in checkpoint.log_history or () if entry.get("step") == checkpoint.step)
    return {
        name: float(value)
        for entry in logs
        for name, value in entry.items()
        if metric_names.is_evaluation_result(name) and _is_finite(value)
    }


def _rename_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a log history's entry as Relay's own trainers would have reported them."""
    numbers = {name: value for name, value in entry.items() if name != "step" and _is_number(value)}
    if "train_runtime" in numbers:
        kept = {ours: numbers[name] for name, ours in metric_names.SUMMARY.items() if name in numbers}
        return _to_json_numbers(kept | ({"epoch": numbers["epoch"]} if "epoch" in numbers else {}))
    values = {
        metric_names.TRAINING.get(name, name): value
        for name, value in numbers.items()
        if name not in metric_names.EVALUATION_SPEEDS
    }
    if "loss" in numbers:
        values["perplexity"] = metric_names.perplexity(numbers["loss"])
    if "eval_loss" in numbers:
        values["eval_perplexity"] = metric_names.perplexity(numbers["eval_loss"])
    return _to_json_numbers(values)


def _to_json_numbers(values: Mapping[str, float]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by their names."""
    words = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return {name: value if math.isfinite(value) else words.get(value, "NaN") for name, value in values.items()}


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023  # what a float holds
    return isinstance(value, float)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def list_names(metrics: Iterable[str], most: int = 4) -> str:
    """Return the first few names of metrics, the losses before the others, and how many more there are."""
    found = set(metrics)
    losses = [name for name in ("train_loss", "eval_loss") if name in found]
    known = [*losses, *sorted(found - set(losses))]
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")

"""The curve of a training that ran without Relay, as event lines of the contract, up to a step.

It is in the folder's `events.jsonl`, or in the `log_history` of the Hugging Face Trainer, whose names become those
that Relay's own trainers give (`runfile.metric_names`), so that a run that goes on has one curve. Blocking: call it in
a thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relayctl.local.external_checkpoints import Foreign, NotImportable, require_inside
from relayctl.output.format import size
from runfile import metric_names

EVENTS = "events.jsonl"
MAX_CURVE = 64 << 20  #: bytes of event lines that a coordinator takes
MAX_LINE = 256 * 1024
_KNOWN = ("message", "pin", "sample", "upload_failing")  #: event lines that say nothing of the curve


@dataclass(slots=True)
class Curve:
    """Event lines, what is in them, and what each checkpoint is judged by."""

    origin: str = ""
    lines: list[bytes] = field(default_factory=list)
    metrics: dict[str, int] = field(default_factory=dict)  #: how many points of each
    judged: dict[int, dict[str, float]] = field(default_factory=dict)  #: by step
    unread: int = 0  #: lines that say nothing known

    @property
    def points(self) -> int:
        return sum(self.metrics.values())

    @property
    def content(self) -> bytes:
        return b"".join(self.lines)

    def add(self, line: bytes, step: int, values: Mapping[str, Any]) -> None:
        """One line of points."""
        self.lines.append(line + b"\n")
        for name in values:
            self.metrics[name] = self.metrics.get(name, 0) + 1
        judged = {
            name: float(value)
            for name, value in values.items()
            if metric_names.is_evaluation_result(name) and _finite(value)
        }
        if judged:
            self.judged.setdefault(step, {}).update(judged)


def of(root: Path, checkpoints: Sequence[Foreign]) -> Curve:
    """The curve of what was trained in a folder, up to the newest of its checkpoints."""
    head, events = checkpoints[-1], root / EVENTS
    curve = Curve()
    if events.exists():
        require_inside(events, root)
        curve = _of_events(events, head.step)
    if not curve.points and head.logged is not None:
        unread, curve = curve.unread, _of_history(checkpoints)
        curve.unread += unread
    if (total := sum(map(len, curve.lines))) > MAX_CURVE:
        raise NotImportable(f"{root}: the curve is {size(total)} of event lines; at most {size(MAX_CURVE)} are taken")
    return curve


def _of_events(file: Path, head: int) -> Curve:
    curve = Curve(EVENTS)
    with file.open("rb") as opened:
        for raw in opened:
            if line := raw.strip():
                _take(curve, line, head)
    return curve


def _take(curve: Curve, line: bytes, head: int) -> None:
    event = _event(line)
    step, kind, values = _step(event), event.get("type"), event.get("values")
    if kind == "metric" and step is not None and isinstance(values, dict):
        if step <= head:
            curve.add(line, step, values)
    elif kind == "progress" and step is not None:
        if step <= head:
            curve.lines.append(line + b"\n")
    elif kind == "checkpoint" and step is not None:
        said = event.get("metrics")
        found = {name: float(value) for name, value in said.items() if _finite(value)} if isinstance(said, dict) else {}
        curve.judged.setdefault(step, {}).update(found)
    elif kind not in _KNOWN:
        curve.unread += 1


def _step(event: Mapping[str, Any]) -> int | None:
    step = event.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _event(line: bytes) -> Mapping[str, Any]:
    if len(line) > MAX_LINE:
        return {}
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _of_history(checkpoints: Sequence[Foreign]) -> Curve:
    """The Trainer dates nothing: each point is as old as the first checkpoint that has it."""
    head, curve = checkpoints[-1], Curve(f"{checkpoints[-1].folder.name}/trainer_state.json")
    for entry in head.logged or ():
        step, values = _step(entry), _values(entry)
        if step is None or step > head.step or not values:
            curve.unread += 1
            continue
        saved = next(each.time for each in checkpoints if each.step >= step)
        line = {"type": "metric", "step": step, "time": _rfc3339(saved), "values": values}
        curve.add(json.dumps(line).encode(), step, values)
    if head.total:
        line = {"type": "progress", "step": head.step, "total": head.total, "time": _rfc3339(head.time)}
        curve.lines.append(json.dumps(line).encode() + b"\n")
    for each in checkpoints:
        curve.judged[each.step] = _judged(each)
    return curve


def _judged(checkpoint: Foreign) -> dict[str, float]:
    """What its own history says of its own step."""
    logs = (entry for entry in checkpoint.logged or () if entry.get("step") == checkpoint.step)
    return {
        name: float(value)
        for entry in logs
        for name, value in entry.items()
        if metric_names.is_evaluation_result(name) and _finite(value)
    }


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a log history, as Relay's own trainers would have reported it."""
    numbers = {name: value for name, value in entry.items() if name != "step" and _is_number(value)}
    if "train_runtime" in numbers:
        kept = {said: numbers[name] for name, said in metric_names.SUMMARY.items() if name in numbers}
        return _said(kept | ({"epoch": numbers["epoch"]} if "epoch" in numbers else {}))
    values = {
        metric_names.TRAINING.get(name, name): value
        for name, value in numbers.items()
        if name not in metric_names.EVALUATION_SPEEDS
    }
    if "loss" in numbers:
        values["perplexity"] = metric_names.perplexity(numbers["loss"])
    if "eval_loss" in numbers:
        values["eval_perplexity"] = metric_names.perplexity(numbers["eval_loss"])
    return _said(values)


def _said(values: Mapping[str, float]) -> dict[str, Any]:
    """As JSON can say it, which has no NaN."""
    words = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return {name: value if math.isfinite(value) else words.get(value, "NaN") for name, value in values.items()}


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023  # what a float holds
    return isinstance(value, float)


def _finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def names(metrics: Iterable[str], most: int = 4) -> str:
    """The first few, the losses before the others."""
    found = set(metrics)
    losses = [name for name in ("train_loss", "eval_loss") if name in found]
    known = [*losses, *sorted(found - set(losses))]
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")

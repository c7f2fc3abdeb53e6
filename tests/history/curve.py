"""S4 to S7: checkpoints, the head, and the one curve."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.history.index import Finding, History, grouped
from tests.history.record import Row

LINES = ("events", "agent")  #: sources of JSON lines
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
Point = tuple[str, int, str]  #: metric, step, value as text (a NaN equals itself then)


def copies_are_written_once(history: History) -> Finding:
    """S4: what lies beyond its host lies under its lease's or its content's own name, and never changes."""
    parts = {(part["checkpoint_id"], part["node"]): part for part in history.table("checkpoint_parts")}
    content: dict[str, str] = {}
    for copy in history.table("checkpoint_copies"):
        checkpoint, part = (
            history.checkpoints.get(copy["checkpoint_id"]),
            parts.get((copy["checkpoint_id"], copy["node"])),
        )
        if checkpoint is None or part is None:
            yield "", f"{copy['uri']} is a copy of nothing"
        elif copy["store"] != "host":
            digest, uri = part["manifest_digest"], copy["uri"]
            if digest not in uri and checkpoint["lease_id"] not in uri:
                yield checkpoint["run_id"], f"{uri} names neither its lease nor its content"
            if content.setdefault(uri, digest) != digest:
                yield checkpoint["run_id"], f"{uri} is a copy of two contents"


@dataclass(slots=True)
class Fold:
    """A run as its history tells it, entry by entry."""

    holder: str | None = None
    started: bool = False
    head: str | None = None
    curve: list[str] = field(default_factory=list)  #: checkpoints on it
    superseded: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)  #: checkpoints that were scheduled for deletion
    kept: dict[str, int] = field(default_factory=dict)  #: by lease, where a later one took its points off


def heads_are_fenced(history: History) -> Finding:
    """S5: each head was of the lease that held the run then, started, complete, and beyond that lease's last."""
    for run in history.runs:
        fold = Fold()
        last: dict[str, int] = {}
        for entry in history.events_of(run):
            if entry["kind"] == "checkpoint":
                lease, step = entry["lease_id"], entry["details"]["step"]
                yield from ((run, text) for text in _wrong_head(history, fold, entry))
                if step <= last.get(lease, -1):
                    yield run, f"the head of lease {lease} moved from step {last[lease]} to {step}"
                last[lease] = step
            _tell(history, fold, entry)
        head = history.runs[run]["head_id"]
        if head != fold.head:
            yield run, f"its head is {head}, and {fold.head} by its history"


def _wrong_head(history: History, fold: Fold, entry: Row) -> Iterator[str]:
    what, row = f"the head of entry {entry['sequence']}", history.checkpoints.get(entry["details"]["checkpoint"])
    if entry["lease_id"] != fold.holder or not fold.started:
        yield f"{what} was set under lease {entry['lease_id']}, while {fold.holder} held the run"
    if row is None:
        yield f"{what} is not registered"
        return
    if (row["lease_id"], row["step"]) != (entry["lease_id"], entry["details"]["step"]):
        yield f"{what} is of lease {row['lease_id']} and step {row['step']}"
    places = {place["node"] for place in history.places.get(row["lease_id"], ())}
    places = {0} if row["lease_id"] in history.imported else places
    if not row["complete"] or {part["node"] for part in history.parts.get(row["id"], ())} != places:
        yield f"{what} (step {row['step']}) is not complete"


def heads_come_after_their_events(history: History) -> Finding:
    """S5: the cursors have passed the `checkpoint` line of everything registered."""
    for row in history.checkpoints.values():
        for part in history.parts.get(row["id"], ()):
            sources = [(row["lease_id"], part["node"], source) for source in LINES]
            ends = {
                key: _line_end(history.witness.files[key], row["step"])
                for key in sources
                if key in history.witness.files
            }
            named = {key: end for key, end in ends.items() if end is not None}
            if named and not any(_stored(history, key) >= end for key, end in named.items()):
                yield row["run_id"], f"step {row['step']} of lease {row['lease_id']} is registered before its events"
            if ends and not named:
                yield (
                    row["run_id"],
                    f"step {row['step']} of lease {row['lease_id']} is registered, and no line names it",
                )


def _line_end(data: bytes, step: int) -> int | None:
    return next(
        (end for end, line in _lines(data) if line.get("type") == "checkpoint" and line.get("step") == step), None
    )


def steps_grow_along_the_curve(history: History) -> Finding:
    """S5: of the checkpoints that count, over all attempts."""
    for run in history.runs:
        counted = [row for row in history.checkpoints.values() if row["run_id"] == run and not row["superseded"]]
        steps = [row["step"] for row in sorted(counted, key=lambda row: (row["attempt"], row["step"]))]
        if any(before > after for before, after in pairwise(steps)):
            yield run, f"its checkpoints are of steps {steps}"


def attempts_resume_from_the_newest(history: History) -> Finding:
    """S6: an attempt resumes from the newest checkpoint on the curve at that time, unless it reports why not."""
    for run in history.runs:
        fold = Fold()
        for entry in history.events_of(run):
            if entry["kind"] == "started":
                skipped = {each["checkpoint"] for each in entry["details"]["skipped"]}
                offered = [each for each in fold.curve if each not in skipped | fold.gone]
                newest = max(offered, key=lambda each: _order(history, each), default="")
                if entry["details"]["checkpoint"] != newest:
                    chosen = entry["details"]["checkpoint"] or "nothing"
                    yield run, f"attempt {entry['attempt']} resumed from {chosen}, and {newest or 'nothing'} was newest"
            _tell(history, fold, entry)


def what_came_after_is_superseded(history: History) -> Finding:
    """S6: points and checkpoints beyond a resume are superseded, those before it and the head are not."""
    for run, row in history.runs.items():
        fold = Fold()
        for entry in history.events_of(run):
            _tell(history, fold, entry)
        for lease in history.leases_of(run):
            if lease["kept_until_step"] != fold.kept.get(lease["id"]):
                expected = fold.kept.get(lease["id"])
                yield run, f"attempt {lease['attempt']} counts until {lease['kept_until_step']}, not {expected}"
        for checkpoint in (each for each in history.checkpoints.values() if each["run_id"] == run and each["complete"]):
            if checkpoint["superseded"] != (checkpoint["id"] in fold.superseded):
                yield (
                    run,
                    f"the checkpoint of step {checkpoint['step']} of attempt {checkpoint['attempt']} is wrongly "
                    + ("superseded" if checkpoint["superseded"] else "on the curve"),
                )
        head = history.checkpoints.get(row["head_id"] or "")
        if row["head_id"] is not None and (head is None or head["superseded"] or not head["complete"]):
            yield run, "its head is not a complete checkpoint on the curve"


def starts_are_as_told(history: History) -> Finding:
    """S6: the lease's row agrees with the history."""
    for run in history.runs:
        for entry in (entry for entry in history.events_of(run) if entry["kind"] == "started"):
            lease, told = history.leases.get(entry["lease_id"]), entry["details"]
            if lease and (lease["resumed_from"] or "", lease["resumed_step"]) != (told["checkpoint"], told["step"]):
                yield (
                    run,
                    f"attempt {entry['attempt']} resumed at {lease['resumed_step']}, and {told['step']} by history",
                )


def _tell(history: History, fold: Fold, entry: Row) -> None:
    """One more entry."""
    match entry["kind"]:
        case "granted":
            fold.holder, fold.started = entry["lease_id"], False
        case "ended":
            fold.holder = None
        case "checkpoint":
            fold.head = entry["details"]["checkpoint"]
            if fold.head not in fold.curve:
                fold.curve.append(fold.head)
        case "removed":
            fold.gone |= set(entry["details"].get("checkpoints", ()))
        case "started":
            fold.started = True
            _resume(history, fold, entry)


def _resume(history: History, fold: Fold, entry: Row) -> None:
    fold.head = entry["details"]["checkpoint"] or None
    step = entry["details"]["step"] if fold.head else -1
    resumed = history.checkpoints.get(fold.head or "")
    point = (step, resumed["attempt"] if resumed else 0)
    beyond = [each for each in fold.curve if _point(history, each) > point]
    fold.superseded |= set(beyond)
    fold.curve = [each for each in fold.curve if each not in beyond]
    for lease in history.leases_of(entry["run_id"]):
        if lease["attempt"] < entry["attempt"]:
            fold.kept[lease["id"]] = min(step, fold.kept.get(lease["id"], step))


def _order(history: History, checkpoint: str) -> tuple[int, int]:
    row = history.checkpoints.get(checkpoint)
    return (row["attempt"], row["step"]) if row else (0, 0)


def _point(history: History, checkpoint: str) -> tuple[int, int]:
    attempt, step = _order(history, checkpoint)
    return step, attempt


def cursors_stand_where_they_can(history: History) -> Finding:
    """S7: at the end of a line of the file, never beyond it."""
    for key, row in history.cursors.items():
        data, offset = history.witness.files.get(key), row["offset_bytes"]
        if data is None:
            continue
        where = f"the cursor of {key[2]} of node {key[1]} of lease {key[0]}"
        if offset > len(data):
            yield history.run_of(key[0]), f"{where} is at {offset} of {len(data)} bytes"
        elif key[2] in LINES and offset and data[offset - 1 : offset] != b"\n":
            yield history.run_of(key[0]), f"{where} is in the middle of a line"


def logs_are_whole(history: History) -> Finding:
    """S7: from the first byte to the cursor, each once, as on the host."""
    chunks = grouped(history.table("log_chunks"), "lease_id", "node", "source")
    keys = set(chunks) | {key for key in history.cursors if key[2] not in LINES}
    for key in sorted(keys):
        found = sorted(chunks.get(key, ()), key=lambda row: row["offset_bytes"])
        data = b"".join(bytes(row["data"]) for row in found)
        where, stored = f"{key[2]} of node {key[1]} of lease {key[0]}", _stored(history, key)
        if (
            any(a["offset_bytes"] + len(a["data"]) != b["offset_bytes"] for a, b in pairwise(found))
            or len(data) != stored
        ):
            yield history.run_of(key[0]), f"{where} has holes or doubles before {stored}"
        elif (file := history.witness.files.get(key)) is not None and file[:stored] != data:
            yield history.run_of(key[0]), f"{where} is not what its host has"


def points_are_those_of_the_files(history: History) -> Finding:
    """S7: nothing up to a cursor is missing, and nothing else is there; in order within a source."""
    chunks = grouped(history.table("metric_chunks"), "lease_id")
    for lease in sorted(set(history.leases) - history.imported):
        keys = [key for key in history.cursors if key[0] == lease and key[2] in LINES]
        if any(key not in history.witness.files for key in keys):
            continue
        stored = list(_points_of(chunks.get(lease, ())))
        true = [point for key in keys for point in _points_in(history.witness.files[key][: _stored(history, key)])]
        dropped = sum(history.cursors[key]["dropped"] for key in keys)
        run, missing, extra = history.run_of(lease), Counter(true) - Counter(stored), Counter(stored) - Counter(true)
        if extra:
            yield run, f"of lease {lease} more is stored than its host wrote: {_some(extra)}"
        if missing and missing.total() > dropped:
            yield run, f"of lease {lease} is not stored what its host wrote: {_some(missing)}"
        if not extra and not missing and len(keys) == 1 and _by_metric(stored) != _by_metric(true):
            yield run, f"the points of lease {lease} are in another order than its host wrote them"


def _points_of(chunks: Iterable[Row]) -> Iterator[Point]:
    for row in sorted(chunks, key=lambda row: row["id"]):
        for step, value in zip(row["steps"], row["points"], strict=True):
            yield row["metric"], step, repr(float(value))


def _points_in(data: bytes) -> Iterator[Point]:
    for _, line in _lines(data):
        values = line.get("values")
        if line.get("type") == "metric" and isinstance(line.get("step"), int) and isinstance(values, dict):
            for metric, value in values.items():
                number = _WORDS.get(value, value) if isinstance(value, str) else value
                if isinstance(number, int | float) and not isinstance(number, bool):
                    yield metric, line["step"], repr(float(number))


def _lines(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Readable lines, each with the offset after it."""
    offset = 0
    for line in data.split(b"\n")[:-1]:
        offset += len(line) + 1
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            yield offset, said


def _by_metric(points: Iterable[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point[0], []).append(point)
    return found


def _stored(history: History, key: tuple[str, int, str]) -> int:
    row = history.cursors.get(key)
    return row["offset_bytes"] if row else 0


def _some(points: Counter[Point]) -> str:
    return ", ".join(f"{metric} at {step}" for metric, step, _ in sorted(points)[:3]) + f" ({points.total()} in all)"


def there_is_one_curve(history: History) -> Finding:
    """S7: of the points that count, each step once and in order, over all attempts.

    A trainer may name a step twice by itself, as its file shows.
    """
    files = {lease for lease, _, source in history.witness.files if source in LINES}
    for run in history.runs:
        for metric, points in _curve(history, run).items():
            for (before, last, _), (after, step, _) in pairwise(points):
                if step < last or (step == last and not (before == after and after in files)):
                    yield run, f"{metric} has step {step} twice or late"
                    break


def _curve(history: History, run: str) -> dict[str, list[tuple[str, int, str]]]:
    """(lease, step, value) by metric, in the order of attempts."""
    chunks = grouped((row for row in history.table("metric_chunks") if row["run_id"] == run), "lease_id")
    curve: dict[str, list[tuple[str, int, str]]] = {}
    for lease in history.leases_of(run):
        kept = lease["kept_until_step"]
        for metric, step, value in _points_of(chunks.get(lease["id"], ())):
            if kept is None or step <= kept:
                curve.setdefault(metric, []).append((lease["id"], step, value))
    return curve


def the_curve_is_true(history: History) -> Finding:
    """S7: what counts was done, with this value; and what was done and counts is there."""
    done = {(step.lease, step.metric, step.step): step for step in history.witness.steps}
    for run in history.runs:
        curve = _curve(history, run)
        there = {(lease, metric, step) for metric, points in curve.items() for lease, step, _ in points}
        metrics = {step.metric for step in history.witness.steps if step.run == run}
        for metric in metrics:
            for lease, step, value in curve.get(metric, ()):
                true = done.get((lease, metric, step))
                if lease in history.imported:
                    continue
                if true is None:
                    yield run, f"{metric} at {step} of lease {lease} counts, and nobody did it"
                elif true.value is not None and repr(float(true.value)) != value:
                    yield run, f"{metric} at {step} is {value}, and was {true.value}"
        for key, made in done.items():
            if made.run == run and key not in there and made.step <= _final(history, made.lease):
                yield run, f"step {made.step} of lease {made.lease} was done and is not on the curve"


def _final(history: History, lease: str) -> float:
    """Up to which step all that the attempt did must be there by now."""
    row = history.leases.get(lease)
    if row is None:
        return -1  # a failover has lost its grant
    if row["kept_until_step"] is not None:
        return int(row["kept_until_step"])
    return math.inf if row["outcome"] in ("succeeded", "failed", "stopped") else -1

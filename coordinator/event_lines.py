"""The parser of event lines: what each line of a JSON source says, what is dropped and why. Pure.

A bad line never stops a stream: a line that cannot be read, or is over a limit, is counted, the first few are reported
with their byte offset, and reading continues with the next one. The limits are those of R10.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MAX_LINE = 256 * 1024  #: bytes
MAX_VALUES = 1000  #: metrics in one line
MAX_METRICS = 2000  #: metrics of one run
MAX_MESSAGES = 50  #: of one byte range
MAX_TEXT = 4096  #: characters of a message
MAX_SAMPLES = 200  #: of one byte range
MAX_SHOWN = 16 * 1024  #: characters of a sample's prompt, and of its completion
MAX_PINS = 100  #: of one byte range
MAX_REPORTED = 5  #: dropped lines or values that are reported
METRIC_NAME = re.compile(r"[\w][\w./@:%+*()\[\]=,#~ -]{0,127}")
PHASE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
PIN_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
LEVELS = ("info", "warning", "error")
FIDELITIES = ("exact", "close", "changed")
MAX_REASONS = 50  #: of one resume
SAMPLE_KINDS = ("prompt", "rollout")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class BadLine(ValueError):
    """A line, or a value in it, that is dropped; the message says why."""


@dataclass(slots=True)
class MetricSeries:
    """Points of one metric, in the order of their lines. Times are epoch seconds by the trainer's clock."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def leave_out(self, steps: set[int]) -> int:
        """Take out the points of some steps, and return how many they were."""
        kept = [point for point in zip(self.steps, self.values, self.times, strict=True) if point[0] not in steps]
        count = len(self.steps) - len(kept)
        self.steps, self.values, self.times = ([point[column] for point in kept] for column in range(3))  # type: ignore[assignment]
        return count


@dataclass(slots=True)
class LoggedMessage:
    """A message from the trainer or the agent."""

    level: str
    text: str
    kind: str = "message"  #: kind of the history's event
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportedResume:
    """How exactly an attempt resumed, as its trainer reports."""

    fidelity: str  #: one of FIDELITIES
    reasons: list[str]  #: why it is not exact


@dataclass(frozen=True, slots=True)
class ReportedSample:
    """A completion that the trainer reports: of a fixed prompt, or a rollout with its rewards."""

    step: int
    kind: str
    prompt: str
    completion: str
    rewards: dict[str, float]
    time: float  #: epoch seconds by the trainer's clock


@dataclass(slots=True)
class ParsedLines:
    """Everything that a range of lines says."""

    series: dict[str, MetricSeries] = field(default_factory=dict)
    step: int | None = None  #: the newest step of a metric or progress line
    total: int | None = None
    epoch: float | None = None
    messages: list[LoggedMessage] = field(default_factory=list)
    samples: list[ReportedSample] = field(default_factory=list)
    pins: dict[str, str] = field(default_factory=dict)
    resume: ReportedResume | None = None  #: the newest
    dropped: int = 0
    named: list[str] = field(default_factory=list)  #: the first few that were dropped, with where and why

    def drop(self, offset: int, why: str, count: int = 1) -> None:
        """Count what is dropped, and report the first few."""
        self.dropped += count
        if len(self.named) < MAX_REPORTED:
            self.named.append(f"byte {offset}: {why}")


def parse_lines(data: bytes, offset: int, *, now: float, known: set[str]) -> ParsedLines:
    """Parse `data`, which begins at byte `offset` of its source and consists of whole lines.

    `now` (seconds since the epoch) is the time of lines that have none. `known` is the set of the run's metrics; new
    ones are added to it.
    """
    parsed = ParsedLines()
    for line in data.split(b"\n")[:-1]:
        try:
            if line.strip():
                _add_line(parsed, _decode(line), offset, now, known)
        except BadLine as bad:
            parsed.drop(offset, str(bad))
        offset += len(line) + 1
    return parsed


def _decode(line: bytes) -> Mapping[str, Any]:
    if len(line) > MAX_LINE:
        raise BadLine(f"a line of {len(line)} bytes; the limit is {MAX_LINE}")
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON: {error}"[:200]) from error
    if not isinstance(value, dict):
        raise BadLine("not a JSON object")
    return value


def _add_line(parsed: ParsedLines, line: Mapping[str, Any], offset: int, now: float, known: set[str]) -> None:
    match line.get("type"):
        case "metric":
            _add_metric(parsed, line, offset, now, known)
        case "progress":
            parsed.step = _read_step(line)
            parsed.total = _read_count(line.get("total"), parsed.total)
            parsed.epoch = _read_finite(line.get("epoch"), parsed.epoch)
        case "message" | "upload_failing" as kind:
            _add_message(parsed, line, offset, kind)
        case "sample":
            _add_sample(parsed, line, now)
        case "pin":
            _add_pin(parsed, line)
        case "resume":
            _add_resume(parsed, line)
        case "phase":
            _check_phase(line)  # the host acts on it; it adds nothing to the run
        case "checkpoint":
            pass  # the registry's row comes by RegisterCheckpoint; that the cursor passed this line is what counts
        case other:
            raise BadLine(f"unknown type {str(other)[:50]!r}")


def _add_metric(parsed: ParsedLines, line: Mapping[str, Any], offset: int, now: float, known: set[str]) -> None:
    step, values = _read_step(line), line.get("values")
    if not isinstance(values, dict):
        raise BadLine("a metric line must have `values`, an object of numbers")
    time = _read_time(line.get("time"), now)
    if len(values) > MAX_VALUES:
        parsed.drop(offset, f"{len(values)} values; the first {MAX_VALUES} are kept", len(values) - MAX_VALUES)
    for name, value in list(values.items())[:MAX_VALUES]:
        try:
            number = _read_number(value)
            _check_name(name, known)
        except BadLine as bad:
            parsed.drop(offset, f"{name[:50]!r}: {bad}")
            continue
        series = parsed.series.setdefault(name, MetricSeries())
        series.steps.append(step)
        series.values.append(number)
        series.times.append(time)
    parsed.step = step


def _check_name(name: str, known: set[str]) -> None:
    if name in known:
        return
    if not METRIC_NAME.fullmatch(name):
        raise BadLine("a metric's name must be at most 128 letters, digits, or ./@:%+*()[]=,#~_- and blanks")
    if len(known) >= MAX_METRICS:
        raise BadLine(f"a run must have at most {MAX_METRICS} metrics")
    known.add(name)


def _add_message(parsed: ParsedLines, line: Mapping[str, Any], offset: int, kind: str) -> None:
    text, level = line.get("text"), line.get("level", "info")
    if not isinstance(text, str):
        raise BadLine("a message line must have `text`")
    if len(parsed.messages) >= MAX_MESSAGES:
        parsed.drop(offset, f"more than {MAX_MESSAGES} messages at once")
        return
    parsed.messages.append(LoggedMessage(level if level in LEVELS else "info", text[:MAX_TEXT], kind))


def _add_sample(parsed: ParsedLines, line: Mapping[str, Any], now: float) -> None:
    kind, prompt, completion = line.get("kind"), line.get("prompt"), line.get("completion")
    if kind not in SAMPLE_KINDS or not (isinstance(prompt, str) and isinstance(completion, str)):
        raise BadLine("a sample line must have `kind` (prompt or rollout), `prompt` and `completion`, all text")
    given = line.get("rewards") or {}
    if not isinstance(given, dict) or len(given) > MAX_VALUES:
        raise BadLine(f"a sample's `rewards` must be an object of at most {MAX_VALUES} numbers")
    rewards = {name: _read_number(value) for name, value in given.items() if value is not None}
    if bad := next((name for name in rewards if not METRIC_NAME.fullmatch(name)), None):
        raise BadLine(f"{bad[:50]!r} is not a valid name for a reward")
    if len(parsed.samples) >= MAX_SAMPLES:
        raise BadLine(f"more than {MAX_SAMPLES} samples at once")
    shown = prompt[:MAX_SHOWN], completion[:MAX_SHOWN]
    parsed.samples.append(ReportedSample(_read_step(line), kind, *shown, rewards, _read_time(line.get("time"), now)))


def _add_pin(parsed: ParsedLines, line: Mapping[str, Any]) -> None:
    name, value = line.get("name"), line.get("value")
    if not (
        isinstance(name, str) and PIN_NAME.fullmatch(name) and isinstance(value, str) and 0 < len(value) <= MAX_TEXT
    ):
        raise BadLine("a pin line must have `name` and `value`, both text")
    if len(parsed.pins) >= MAX_PINS:
        raise BadLine(f"more than {MAX_PINS} pins at once")
    parsed.pins.setdefault(name, value)


def _add_resume(parsed: ParsedLines, line: Mapping[str, Any]) -> None:
    step, fidelity, reasons = _read_step(line), line.get("fidelity"), line.get("reasons", [])
    if fidelity not in FIDELITIES:
        raise BadLine("a resume line must have `fidelity`: exact, close or changed")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise BadLine("a resume line's `reasons` must be a list of texts")
    shown = [reason[:MAX_TEXT] for reason in reasons[:MAX_REASONS]]
    parsed.resume = ReportedResume(fidelity, shown)
    text = "; ".join([f"resumes from step {step}: {fidelity}", *shown])[:MAX_TEXT]
    details = {"step": step, "fidelity": fidelity, "reasons": shown}
    parsed.messages.append(LoggedMessage("info" if fidelity == "exact" else "warning", text, details=details))


def _check_phase(line: Mapping[str, Any]) -> None:
    name = line.get("phase")
    if not (isinstance(name, str) and PHASE_NAME.fullmatch(name)):
        raise BadLine("a phase line must have `phase`, a name of at most 32 letters a-z, digits, _ and -")
    if any(key in line and _read_count(line[key], None) is None for key in ("done", "total")):
        raise BadLine("a phase line's `done` and `total` must be whole numbers that are not negative")


def _read_step(line: Mapping[str, Any]) -> int:
    step = _read_count(line.get("step"), None)
    if step is None:
        raise BadLine("`step` must be a whole number that is not negative")
    return step


def _read_count(value: object, otherwise: int | None) -> int | None:
    """Return a whole number from 0 that Postgres can store, also when written as 3.0; otherwise `otherwise`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62:
        return value
    return otherwise


def _read_number(value: object) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine("not a number")
    try:
        return float(value)
    except OverflowError:
        raise BadLine("a number too large for a float") from None


def _read_finite(value: object, otherwise: float | None) -> float | None:
    try:
        number = _read_number(value)
    except BadLine:
        return otherwise
    return number if math.isfinite(number) else otherwise


def _read_time(value: object, now: float) -> float:
    """Return a time in seconds since the epoch, given as such or as RFC 3339 text; `now` when it is neither."""
    readers: dict[type, Callable[[Any], float]] = {
        int: float,
        float: float,
        str: lambda text: datetime.fromisoformat(text).timestamp(),
    }
    try:
        time = readers[type(value)](value)
    except (KeyError, ValueError, OverflowError, OSError):
        return now
    return time if math.isfinite(time) else now

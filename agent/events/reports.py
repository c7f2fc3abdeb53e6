"""The trainer's event lines that its host acts on: steps, phases and checkpoints. All other lines are only sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.events.sources import read_range

MAX_STEP = 2**53  #: the largest integer that JSON carries exactly everywhere


@dataclass(frozen=True, slots=True)
class StepReport:
    """A line that names a step."""

    step: int


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """A line that says what the trainer is doing beside steps, and how many parts of it are done."""

    phase: str
    done: int = 0


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A `checkpoint` line: `path` is relative to the staging folder, `end` the source's offset after the line.

    With `evaluation_due` its weights are evaluated after it was saved.
    """

    step: int
    path: str
    metrics: dict[str, float] = field(default_factory=dict)
    source: str = "events"
    end: int = 0
    evaluation_due: bool = False


Report = StepReport | PhaseReport | SavedCheckpoint


class ReportReader:
    """Reads reports of one file, each once. Blocking: call it in a thread."""

    def __init__(self, path: Path, *, source: str = "events") -> None:
        self._path = path
        self._source = source
        self._offset = 0

    def read(self) -> list[Report]:
        """Return the reports since the last call; other lines are skipped. Of steps and phases in a row only the last
        is returned: days of training are read again by the next agent, and must not be in memory at once.
        """
        found: list[Report] = []
        while byte_range := read_range(self._path, self._offset, lines=True, limit=1 << 20):
            for report in parse_reports(byte_range.data, byte_range.offset, self._source):
                while found and _supersedes(report, found[-1]):
                    found.pop()
                found.append(report)
            self._offset = byte_range.end
        return found


def _supersedes(report: Report, before: Report) -> bool:
    """Return True when nothing need be known of the report before this one."""
    match report, before:
        case StepReport(), StepReport() | PhaseReport():
            return True
        case PhaseReport(phase), PhaseReport(other):
            return phase == other
    return False


def parse_reports(data: bytes, offset: int, source: str = "events") -> Iterator[Report]:
    """Return the reports in whole lines that begin at `offset` of their source."""
    for line in data.splitlines(keepends=True):
        offset += len(line)
        try:
            report = _parse_report(json.loads(line), source, offset)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        if report is not None:
            yield report


def _parse_report(line: dict[str, Any], source: str, end: int) -> Report | None:
    if line["type"] == "phase":
        phase, done = line["phase"], line.get("done", 0)
        known = isinstance(phase, str) and isinstance(done, int) and not isinstance(done, bool)
        return PhaseReport(phase, done) if known else None
    step = line.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < MAX_STEP:
        return None
    match line["type"]:
        case "checkpoint":
            metrics = {str(name): float(value) for name, value in (line.get("metrics") or {}).items()}
            due = line.get("evaluation_due") is True
            return SavedCheckpoint(step, str(line["path"]), metrics, source, end, due)
        case "metric" | "progress":
            return StepReport(step)
    return None


def encode_event(kind: str, **values: object) -> bytes:
    """Return an event line of the agent's own."""
    return json.dumps({"type": kind, **values}).encode() + b"\n"

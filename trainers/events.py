"""The event file: append-only JSON lines, the trainer's whole voice."""

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Level = Literal["info", "warning", "error"]
SampleKind = Literal["prompt", "rollout"]
Value = float | int | str

_SHOWN = 8192  #: characters of a sample's prompt, and of its completion


def number(value: float | int) -> Value:
    """The value as JSON can say it.

    JSON has no NaN. Python writes a bare `NaN` that strict readers refuse with the whole line, and a diverged loss is
    what nobody may miss: it is written as the text "NaN", "Infinity" or "-Infinity" (protobuf's JSON does the same).
    """
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class EventLog:
    """Appends to one `events.jsonl`. Every line is one `write`, so a reader never sees half of one that was followed
    by more.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def metric(self, step: int, values: Mapping[str, float | int]) -> None:
        """Named numbers at an optimizer step."""
        self._append(
            type="metric", step=step, time=_now(), values={name: number(value) for name, value in values.items()}
        )

    def progress(self, step: int, total: int, epoch: float) -> None:
        """`step` of `total` optimizer steps are done."""
        self._append(type="progress", step=step, total=total, epoch=number(epoch), time=_now())

    def checkpoint(self, step: int, path: str, metrics: Mapping[str, float | int]) -> None:
        """The folder `path` (relative to the staging root) is whole and on disk."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._append(type="checkpoint", step=step, path=path, metrics=finite, time=_now())

    def sample(
        self, step: int, kind: SampleKind, prompt: str, completion: str, rewards: Mapping[str, float] | None = None
    ) -> None:
        """A completion for people to look at; texts are cut so that the line stays short enough to travel."""
        self._append(
            type="sample",
            step=step,
            kind=kind,
            prompt=prompt[:_SHOWN],
            completion=completion[:_SHOWN],
            rewards={name: number(value) for name, value in (rewards or {}).items()},
            time=_now(),
        )

    def message(self, level: Level, text: str) -> None:
        self._append(type="message", level=level, text=text, time=_now())

    def pin(self, name: str, value: str) -> None:
        """What a name in the run file was resolved to; the first value holds for all attempts."""
        self._append(type="pin", name=name, value=value, time=_now())

    def _append(self, **event: Any) -> None:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):  # a full disk: end the torn line so that only it is lost
            os.write(self._file, b"\n")
            raise OSError(f"wrote {written} of {len(line)} bytes of an event")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The event file: JSON lines that a trainer appends. It is the only way in which a trainer reports anything."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Level = Literal["info", "warning", "error"]
SampleKind = Literal["prompt", "rollout"]
JsonNumber = float | int | str

_SAMPLE_CHARACTERS = 8192  #: characters of a sample's prompt, and of its completion


def encode_number(value: float | int) -> JsonNumber:
    """Return the value as JSON can hold it.

    JSON has no NaN. Python writes a bare `NaN`, and strict readers refuse the whole line for it. But a diverged loss
    must not go unseen, so it is written as the text "NaN", "Infinity" or "-Infinity", as in protobuf's JSON.
    """
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class EventLog:
    """Appends events to one `events.jsonl`. Each line is one `write`, so a reader never sees a torn line before a whole
    one.
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

    def log_metrics(self, step: int, values: Mapping[str, float | int]) -> None:
        """Append named numbers at an optimizer step."""
        self._append(
            type="metric",
            step=step,
            time=_current_time(),
            values={name: encode_number(value) for name, value in values.items()},
        )

    def log_progress(self, step: int, total: int, epoch: float) -> None:
        """Append that `step` of `total` optimizer steps are done."""
        self._append(type="progress", step=step, total=total, epoch=encode_number(epoch), time=_current_time())

    def log_checkpoint(
        self, step: int, path: str, metrics: Mapping[str, float | int], *, evaluation_due: bool = False
    ) -> None:
        """Append that the checkpoint folder `path` (relative to the staging root) is complete and durable. With
        `evaluation_due` its weights are evaluated next.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        due = {"evaluation_due": True} if evaluation_due else {}
        self._append(type="checkpoint", step=step, path=path, metrics=finite, **due, time=_current_time())

    def log_sample(
        self, step: int, kind: SampleKind, prompt: str, completion: str, rewards: Mapping[str, float] | None = None
    ) -> None:
        """Append a completion for the user to read. Texts are cut so that the line stays short enough to be sent."""
        self._append(
            type="sample",
            step=step,
            kind=kind,
            prompt=prompt[:_SAMPLE_CHARACTERS],
            completion=completion[:_SAMPLE_CHARACTERS],
            rewards={name: encode_number(value) for name, value in (rewards or {}).items()},
            time=_current_time(),
        )

    def log_resume(self, step: int, fidelity: str, reasons: Sequence[str]) -> None:
        """Append how exactly the attempt resumes: `exact`, `close` or `changed`, and why it is not exact."""
        self._append(type="resume", step=step, fidelity=fidelity, reasons=list(reasons), time=_current_time())

    def log_message(self, level: Level, text: str) -> None:
        """Append one line for the user."""
        self._append(type="message", level=level, text=text, time=_current_time())

    def log_phase(self, phase: str, done: int = 0, total: int | None = None) -> None:
        """Append that the trainer is busy with something beside steps, of which `done` parts (of `total`) are over."""
        whole = {} if total is None else {"total": total}
        self._append(type="phase", phase=phase, done=done, **whole, time=_current_time())

    def log_pin(self, name: str, value: str) -> None:
        """Append what a name in the run file was resolved to. The first value holds for all attempts."""
        self._append(type="pin", name=name, value=value, time=_current_time())

    def _append(self, **event: Any) -> None:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):  # a full disk: end the torn line so that only it is lost
            os.write(self._file, b"\n")
            raise OSError(f"wrote {written} of {len(line)} bytes of an event")


def _current_time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

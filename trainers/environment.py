"""The interface between Relay and a trainer: the environment variables that describe one attempt.

It uses the standard library only, because the small parent process reads it too.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class AttemptEnvironment:
    """One attempt at a run, as the host describes it. Paths are absolute."""

    run_id: str
    attempt: int
    run_file: Path
    output: Path  #: the folder for the result
    staging: Path  #: the folder in which whole `step_%08d` folders appear
    events: Path  #: the event file, to which JSON lines are appended
    resume_from: Path | None  #: a verified checkpoint; None on a fresh start
    pins: Mapping[str, str]  #: what earlier attempts resolved, e.g. {"model": "<commit>"}
    gpus: int | None = None  #: the number of GPUs of this node; None when it is not set
    checkpoint_seconds: float | None = None  #: replaces `checkpoint.every` when that is a duration
    keep_last: int | None = None  #: how many checkpoints stay in staging; None when the host removes them

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], run_file: Path) -> "AttemptEnvironment":
        """Read the `RELAY_*` variables. Raises KeyError, which names a variable that is missing."""
        resume = environ.get("RELAY_RESUME_FROM")
        return cls(
            run_id=environ["RELAY_RUN_ID"],
            attempt=int(environ.get("RELAY_ATTEMPT", "1")),
            run_file=run_file.absolute(),
            output=Path(environ["RELAY_OUTPUT_DIR"]).absolute(),
            staging=Path(environ["RELAY_CKPT_STAGING_ROOT"]).absolute(),
            events=Path(environ["RELAY_EVENTS"]).absolute(),
            resume_from=Path(resume).absolute() if resume else None,
            pins=json.loads(environ.get("RELAY_PINS") or "{}"),
            gpus=_read_number(environ, "RELAY_GPUS", int),
            checkpoint_seconds=_read_number(environ, "RELAY_CKPT_INTERVAL", float),
            keep_last=_read_number(environ, "RELAY_CKPT_KEEP_LAST_N", int),
        )

    def to_environ(self) -> dict[str, str]:
        """Return the variables that `from_environ` reads back."""
        values = {
            "RELAY_RUN_ID": self.run_id,
            "RELAY_ATTEMPT": self.attempt,
            "RELAY_RUN_FILE": self.run_file,
            "RELAY_OUTPUT_DIR": self.output,
            "RELAY_CKPT_STAGING_ROOT": self.staging,
            "RELAY_EVENTS": self.events,
            "RELAY_RESUME_FROM": self.resume_from,
            "RELAY_PINS": json.dumps(dict(self.pins)),
            "RELAY_GPUS": self.gpus,
            "RELAY_CKPT_INTERVAL": self.checkpoint_seconds,
            "RELAY_CKPT_KEEP_LAST_N": self.keep_last,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


def runs_under_agent(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True when an agent started this process and keeps the run's folders."""
    return "RELAY_EVENTS" in environ


def _read_number(environ: Mapping[str, str], name: str, kind: type[Number]) -> Number | None:
    text = environ.get(name)
    return kind(text) if text else None

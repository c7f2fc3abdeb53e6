"""The contract between Relay and a trainer: what the environment says. Standard library only: the light parent reads
it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Contract:
    """One attempt at a run, as the host describes it. Paths are absolute."""

    run_id: str
    attempt: int
    run_file: Path
    output: Path  #: the result goes here
    staging: Path  #: `step_%08d` folders appear here, whole
    events: Path  #: JSON lines are appended here
    resume_from: Path | None  #: a verified checkpoint; None on a fresh start
    pins: Mapping[str, str]  #: what earlier attempts resolved, e.g. {"model": "<commit>"}
    gpus: int | None = None  #: GPUs of this node; None when nobody says
    checkpoint_seconds: float | None = None  #: overrides `checkpoint.every` when it is a duration
    keep_last: int | None = None  #: checkpoints that may pile up in staging; None when the host takes them away

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], run_file: Path) -> "Contract":
        """Read the `RELAY_*` variables; KeyError names one that is missing."""
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
            gpus=_number(environ, "RELAY_GPUS", int),
            checkpoint_seconds=_number(environ, "RELAY_CKPT_INTERVAL", float),
            keep_last=_number(environ, "RELAY_CKPT_KEEP_LAST_N", int),
        )

    def to_environ(self) -> dict[str, str]:
        """The variables that `from_environ` reads back."""
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


def under_agent(environ: Mapping[str, str] = os.environ) -> bool:
    """True when somebody else (the agent) keeps the run's folders."""
    return "RELAY_EVENTS" in environ


def _number(environ: Mapping[str, str], name: str, kind: type[N]) -> N | None:
    text = environ.get(name)
    return kind(text) if text else None

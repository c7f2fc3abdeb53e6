"""References to a checkpoint: `RUN@STEP`, `RUN@latest` (the run's head) or `RUN@best` (by its `checkpoint.keep`).

`RUN` alone refers to the run's result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

LATEST, BEST = "latest", "best"
PATTERN = r"^(runs/)?(?P<run>[a-z0-9][a-z0-9._-]{0,127})(@(?P<which>latest|best|[0-9]{1,18}))?$"
_SHAPE = re.compile(PATTERN)


class Candidate(Protocol):
    """What a choice needs to know of a checkpoint; the coordinator and its clients have types of their own."""

    @property
    def step(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def superseded(self) -> bool: ...
    @property
    def head(self) -> bool: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


Chosen = TypeVar("Chosen", bound=Candidate)


class CheckpointNotFound(LookupError):
    """The run has no such checkpoint; the message says which it has."""


class NoBestMetric(CheckpointNotFound):
    """The run file names no metric by which a checkpoint is the best."""


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A run, and which checkpoint of it: a step, `latest` or `best`; empty for the run's result."""

    run: str
    which: str

    @classmethod
    def parse(cls, text: str) -> CheckpointRef:
        """Read a reference. Raises ValueError when the text names neither a result nor a checkpoint."""
        found = _SHAPE.match(text)
        if found is None:
            raise ValueError(f'"{text}" names no checkpoint; write RUN@STEP, RUN@{LATEST} or RUN@{BEST}')
        return cls(found["run"], found["which"] or "")


def choose_checkpoint(which: str, found: Sequence[Chosen], spec: Mapping[str, Any]) -> Chosen:
    """Return the checkpoint that `which` refers to; of several of one step the one that is not superseded.

    `found` are the run's checkpoints in the order they were made, `spec` is its run file. Raises CheckpointNotFound.
    """
    if which == BEST:
        return _best(found, spec.get("checkpoint", {}).get("keep", {}))
    fit = [each for each in found if (each.head if which == LATEST else each.step == int(which))]
    if not fit:
        asked = "any step yet" if which == LATEST else f"step {which}"
        raise CheckpointNotFound(f"no checkpoint of {asked}; {_known(found)}")
    return max(fit, key=lambda each: (not each.superseded, each.attempt))


def _best(found: Sequence[Chosen], keep: Mapping[str, Any]) -> Chosen:
    """Return the best by the metric of `checkpoint.keep`; the newer one of equals."""
    metric = keep.get("metric")
    if not metric:
        raise NoBestMetric("no metric that makes a checkpoint the best (checkpoint.keep.metric); name a step")
    sign = -1.0 if keep.get("mode") == "max" else 1.0
    curve = [each for each in found if not each.superseded and math.isfinite(each.metrics.get(metric, math.nan))]
    if not curve:
        raise CheckpointNotFound(f"no checkpoint with a value of {metric}; {_known(found)}")
    return min(reversed(curve), key=lambda each: sign * each.metrics[metric])


def _known(found: Sequence[Candidate]) -> str:
    steps = sorted({each.step for each in found})
    shown = ", ".join(map(str, steps[-10:]))
    return f"it has {'… ' if len(steps) > 10 else ''}{shown}" if steps else "it has none"

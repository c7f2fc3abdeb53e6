"""Which checkpoint of a run is meant: `RUN@STEP`, `RUN@latest` (its head) or `RUN@best` (by its `checkpoint.keep`).

`RUN` alone is the run's result.
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
    """A checkpoint, as either end has it."""

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
    """The run has no such checkpoint; says which it has."""


class NoBestMetric(CheckpointNotFound):
    """The run says of no metric that it makes a checkpoint the best."""


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A run, and what of it: a step, `latest` or `best`; empty for its result."""

    run: str
    which: str

    @classmethod
    def parse(cls, text: str) -> CheckpointRef:
        """ValueError for what names neither a result nor a checkpoint."""
        found = _SHAPE.match(text)
        if found is None:
            raise ValueError(f'"{text}" names no checkpoint; write RUN@STEP, RUN@{LATEST} or RUN@{BEST}')
        return cls(found["run"], found["which"] or "")


def choose_checkpoint(which: str, found: Sequence[Chosen], spec: Mapping[str, Any]) -> Chosen:
    """Of the checkpoints of a run (by its run file), in the order they were made; of several of a step the one on the
    curve. NoPoint names those that there are.
    """
    if which == BEST:
        return _best(found, spec.get("checkpoint", {}).get("keep", {}))
    fit = [each for each in found if (each.head if which == LATEST else each.step == int(which))]
    if not fit:
        asked = "any step yet" if which == LATEST else f"step {which}"
        raise CheckpointNotFound(f"no checkpoint of {asked}; {_known(found)}")
    return max(fit, key=lambda each: (not each.superseded, each.attempt))


def _best(found: Sequence[Chosen], keep: Mapping[str, Any]) -> Chosen:
    """By the metric that the run file keeps the best by; of equal ones the newer."""
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

"""The retention rules: which checkpoints of a run are kept, with reasons, and which are scheduled for deletion. Pure.

Some are kept whatever the run file says: the head, the checkpoint that the running attempt resumed from, those that a
user has pinned, those that are unfinished (incomplete, or without a copy beyond their host), and the newest one that
would outlive its host. Of the others on the curve, the run file's `checkpoint.keep` selects, within its limits of age
and size. Superseded checkpoints are deleted first.

A checkpoint is kept or deleted as a whole. A kept one keeps all its copies, so no rule can delete the only copy of
something that is needed. A deletion is final, so it may be carried out twice.

While an attempt has been granted and has not reported what it resumes from, nothing may be decided: it may resume from
any checkpoint. The store marks what this module decides (`coordinator.store.retention`), and the commands apply it in
the transactions that change what is kept (`coordinator.commands.retention`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Id = TypeVar("Id")

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """The run file's `checkpoint.keep`. Times are in seconds, sizes in bytes."""

    last: int = 3
    best: int = 0
    metric: str = ""
    least: bool = True  #: the best value is the smallest
    every_steps: int | None = None
    every_seconds: float | None = None
    max_age: float | None = None
    max_total: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0 or (self.best and not self.metric):
            raise ValueError("`last` must be at least 1, and `best` must name a metric")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts(Generic[Id]):
    """Everything about a checkpoint that the decision depends on. `time` is in seconds since the epoch."""

    id: Id
    attempt: int
    step: int
    size: int
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation_due: bool = False  #: its metrics are still to come
    complete: bool = True
    superseded: bool = False
    head: bool = False
    pinned: bool = False
    resumed: bool = False  #: the running attempt resumed from it
    current: bool = False  #: the running attempt made it
    beyond: bool = False  #: every part has a copy beyond its host's disk

    @property
    def order(self) -> tuple[int, int]:
        """The sort key: later checkpoints are greater."""
        return self.attempt, self.step


@dataclass(frozen=True, slots=True)
class RetentionDecision(Generic[Id]):
    """Why each kept checkpoint is kept, and why each other one is scheduled for deletion."""

    kept: Mapping[Id, tuple[str, ...]]
    deleted: Mapping[Id, str]


def decide(keep: RetentionPolicy, checkpoints: Iterable[CheckpointFacts[Id]], now: float) -> RetentionDecision[Id]:
    """Decide which of a run's checkpoints are kept and which are scheduled for deletion."""
    found = sorted(checkpoints, key=lambda each: each.order)
    curve = [each for each in found if each.complete and not each.superseded]
    reasons: dict[Id, list[str]] = {each.id: [] for each in found}
    needed = set()
    for each, reason in _find_required(found, curve):
        reasons[each.id].append(reason)
        needed.add(each.id)
    best = set()
    for each, reason in _find_selected(keep, curve):
        reasons[each.id].append(reason)
        if reason.startswith(("best", "one of the best")):
            best.add(each.id)
    deleted = {each.id: _explain_deletion(each) for each in found if not reasons[each.id]}
    remaining = [each for each in found if each.id not in deleted]
    deleted |= {
        each.id: f"older than {_format_duration(keep.max_age or 0)}"
        for each in _find_expired(keep, remaining, needed, now)
    }
    remaining = [each for each in remaining if each.id not in deleted]
    total = _format_size(keep.max_total or 0)
    deleted |= {
        each.id: f"over the limit of {total} in all" for each in _find_over_limit(keep, remaining, needed, best)
    }
    kept = {each.id: tuple(reasons[each.id]) for each in found if each.id not in deleted}
    return RetentionDecision(kept, deleted)


def _find_required(
    found: Sequence[CheckpointFacts[Id]], curve: Sequence[CheckpointFacts[Id]]
) -> Iterator[tuple[CheckpointFacts[Id], str]]:
    """Yield the checkpoints that are kept whatever the run file says, each with a reason."""
    safest = next((each for each in reversed(curve) if each.beyond), None)
    for each in found:
        if each.head:
            yield each, "head"
        if each.resumed:
            yield each, "resumed from"
        if each.pinned:
            yield each, "pinned"
        if each is safest and not each.head:
            yield each, "the newest with a copy beyond its host"
        if each.evaluation_due and (each.current or each.resumed) and not each.superseded:
            yield each, "not evaluated yet"
        if each.current and not each.superseded and not each.complete:
            yield each, "not complete yet"
        elif each.current and not each.superseded and (safest is None or each.order > safest.order):
            yield each, "being uploaded"


def _find_selected(
    keep: RetentionPolicy, curve: Sequence[CheckpointFacts[Id]]
) -> Iterator[tuple[CheckpointFacts[Id], str]]:
    """Yield the checkpoints that the run file selects, each with a reason."""
    for each in curve[-keep.last :]:
        yield each, "the last" if keep.last == 1 else f"one of the last {keep.last}"
    for each in _find_best(keep, curve):
        yield each, f"best by {keep.metric}" if keep.best == 1 else f"one of the best {keep.best} by {keep.metric}"
    if keep.every_steps:
        for each in _find_first_of_each(curve, lambda each: each.step // (keep.every_steps or 1)):
            if each.step >= keep.every_steps:
                yield each, f"every {keep.every_steps} steps"
    if keep.every_seconds:
        for each in _find_first_of_each(curve, lambda each: int(each.time // (keep.every_seconds or 1))):
            yield each, f"every {_format_duration(keep.every_seconds)}"


def _find_best(keep: RetentionPolicy, curve: Sequence[CheckpointFacts[Id]]) -> list[CheckpointFacts[Id]]:
    """Return those with the best values of the metric; of equal ones the newer."""
    sign = 1.0 if keep.least else -1.0
    valued = [each for each in curve if math.isfinite(each.metrics.get(keep.metric, math.nan))]
    ranked = sorted(reversed(valued), key=lambda each: sign * each.metrics[keep.metric])
    return ranked[: keep.best]


def _find_first_of_each(
    curve: Sequence[CheckpointFacts[Id]], interval: Callable[[CheckpointFacts[Id]], int]
) -> Iterator[CheckpointFacts[Id]]:
    """Yield the first checkpoint of every interval, which stays the first whatever comes later."""
    seen: set[int] = set()
    for each in curve:
        if (found := interval(each)) not in seen:
            seen.add(found)
            yield each


def _explain_deletion(each: CheckpointFacts[Id]) -> str:
    if each.superseded:
        return "superseded"
    return "not selected by checkpoint.keep" if each.complete else "never completed"


def _find_expired(
    keep: RetentionPolicy, remaining: Iterable[CheckpointFacts[Id]], needed: set[Id], now: float
) -> Iterator[CheckpointFacts[Id]]:
    if keep.max_age is not None:
        yield from (each for each in remaining if each.id not in needed and now - each.time > keep.max_age)


def _find_over_limit(
    keep: RetentionPolicy, remaining: Sequence[CheckpointFacts[Id]], needed: set[Id], best: set[Id]
) -> Iterator[CheckpointFacts[Id]]:
    """Yield the oldest until the rest fits, the best ones last, and required ones never."""
    if keep.max_total is None:
        return
    total = sum(each.size for each in remaining)
    for each in sorted(remaining, key=lambda each: (each.id in best, each.order)):
        if total > keep.max_total and each.id not in needed:
            total -= each.size
            yield each


def _format_duration(seconds: float) -> str:
    for unit, letter in _UNITS:
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g}{letter}"
    return f"{seconds:g}s"


def _format_size(size: int) -> str:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.4g} {unit}"
    return f"{size} bytes"

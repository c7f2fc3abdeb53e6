"""How a run recovered from the loss of a host, read from its own metrics: steps trained twice, and delays. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.v1 import runs_pb2 as pb


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a run recovered from the loss of a host. Times are in seconds from the loss."""

    trained: int  #: steps on the curve
    twice: int  #: steps that the lost host had trained after the checkpoint that was resumed from
    resumed_step: int
    first_step: float  #: until the new attempt's first step
    beyond: float  #: until the first step that the lost host had not trained
    one_curve: bool  #: whether the curve has every step once and in order, up to the last


def measure_recovery(
    segments: Sequence[pb.ReadMetricsResponse], attempts: Sequence[pb.Attempt], lost: float
) -> Recovery:
    """Measure the recovery by one metric that is logged at every step, given with its superseded points.

    `lost` is when the host was lost, in seconds since the epoch.
    """
    before, after = attempts[0], attempts[-1]
    points = {attempt.name: _points(segments, attempt) for attempt in attempts}
    reached = max((step for step, _ in points[before.name]), default=0)
    curve = [
        step
        for attempt in attempts
        for step, _ in points[attempt.name]
        if not attempt.HasField("kept_until_step") or step <= attempt.kept_until_step
    ]
    new = points[after.name]
    return Recovery(
        trained=len(curve),
        twice=max(reached - after.resumed_step, 0),
        resumed_step=after.resumed_step,
        first_step=min((time for _, time in new), default=float("nan")) - lost,
        beyond=min((time for step, time in new if step > reached), default=float("nan")) - lost,
        one_curve=curve == list(range(1, len(curve) + 1)),
    )


def _points(segments: Sequence[pb.ReadMetricsResponse], attempt: pb.Attempt) -> list[tuple[int, float]]:
    own = (segment for segment in segments if segment.lease == attempt.name)
    return sorted({(step, time) for s in own for step, time in zip(s.steps, s.times, strict=True)})

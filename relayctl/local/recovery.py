"""What a disturbed run's own record says about the disturbance: steps done twice, and how soon it went on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.v1 import runs_pb2 as pb


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a run got over the loss of a host. Times in seconds from the loss."""

    trained: int  #: steps of the curve
    twice: int  #: steps that the lost host had done beyond the checkpoint that was resumed
    resumed_step: int
    first_step: float  #: until the new attempt's first step
    beyond: float  #: until the first step that the lost host had not done
    one_curve: bool  #: every step of the curve once and in order, up to the last


def recovery(stretches: Sequence[pb.ReadMetricsResponse], attempts: Sequence[pb.Attempt], lost: float) -> Recovery:
    """Reads it off one metric logged at every step, superseded points included; `lost` in seconds since the epoch."""
    before, after = attempts[0], attempts[-1]
    points = {attempt.name: _points(stretches, attempt) for attempt in attempts}
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


def _points(stretches: Sequence[pb.ReadMetricsResponse], attempt: pb.Attempt) -> list[tuple[int, float]]:
    own = (stretch for stretch in stretches if stretch.lease == attempt.name)
    return sorted({(step, time) for s in own for step, time in zip(s.steps, s.times, strict=True)})

"""The states of a run and of its lease, and the only place where they change.

A run is *queued* until it is granted, *running* while a lease on it has not ended, *paused*, or over: *succeeded*,
*failed*, *cancelled*. Its lease is *held*, or has *lapsed* (its holder is silent), or has *ended*. Verbs only set
what is `wanted`; the lease's end moves the run. `Phase` folds the three into the nine situations that behave
differently, `TABLE` says for each of them which events it takes and where they lead, and `step` carries one out. A
pair the table does not have is an `IllegalTransition`. The diagram in `docs/lifecycle.md` is drawn from the table:
`python -m coordinator.lifecycle`.

What a lapse is: not an end. The run becomes claimable and nothing is spent; until somebody else is granted it, the
silent lease still counts. It ends only where that is the policy (`stop`), or where nobody would wait for its holder:
when the run is wanted paused or cancelled.

Two budgets, counted apart. `failures` are the run's own and end it at `max_attempts`. `faults` are the
infrastructure's, counted since the head last moved; they spend no attempt, but a run that meets MAX_FAULTS of them
without a single new checkpoint is taken for the cause. Stops that were wished, an agent that leaves and lost trust
spend nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

MAX_FAULTS = 20  #: infrastructure faults without a new head, before a run is given up
BACKOFF = 2.0  #: seconds before the first retry of a failure, and the second after a fault; doubled each time
MAX_BACKOFF = 300.0
STOP_GRACE = 60.0  #: seconds that a stopping trainer has to save before it is killed


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Wanted(StrEnum):
    """What an operator last wished of a run."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class LeaseState(StrEnum):
    """Where a lease stands."""

    HELD = "held"
    LAPSED = "lapsed"
    ENDED = "ended"


class Outcome(StrEnum):
    """How a lease ended."""

    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    FAILED = "failed"
    FAULTED = "faulted"


class Cause(StrEnum):
    """Why a trainer was stopped."""

    REQUESTED = "requested"
    LEAVING = "leaving"
    TRUST_LOST = "trust_lost"


class Policy(StrEnum):
    """What a trainer does when its lease can no longer be trusted."""

    CONTINUE = "continue"
    STOP = "stop"


class StopReason(StrEnum):
    """Why a holder is asked to stop; in the order of sharpness."""

    PREEMPT = "preempt"
    PAUSE = "pause"
    CANCEL = "cancel"

    def strengthened(self, other: StopReason | None) -> StopReason:
        """The sharper of the two: a stop never becomes milder."""
        order = list(StopReason)
        return self if other is None else max(self, other, key=order.index)


class Phase(StrEnum):
    """The situations of a run that behave differently."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    CANCELLING = "cancelling"
    LAPSED = "lapsed"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Status:
    """All of a run that its transitions depend on. `lease` is None when it has no unended lease."""

    state: RunState = RunState.QUEUED
    wanted: Wanted = Wanted.RUN
    lease: LeaseState | None = None
    policy: Policy = Policy.CONTINUE
    stop: StopReason | None = None
    failures: int = 0
    faults: int = 0
    max_attempts: int = 3

    @property
    def phase(self) -> Phase:
        """Which row of the table applies."""
        if self.state is not RunState.RUNNING:
            return Phase(self.state.value)
        if self.lease is LeaseState.LAPSED:
            return Phase.LAPSED
        return {Wanted.RUN: Phase.RUNNING, Wanted.PAUSE: Phase.PAUSING, Wanted.CANCEL: Phase.CANCELLING}[self.wanted]


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease on the run was granted; one that had lapsed ends with it."""


@dataclass(frozen=True, slots=True)
class Started:
    """The holder said what it resumes from."""


@dataclass(frozen=True, slots=True)
class HeadMoved:
    """A checkpoint became head: whatever went wrong before, the run advances."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """A silent holder came back."""


@dataclass(frozen=True, slots=True)
class Lapsed:
    """The holder has been silent for longer than its lease lasts."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The lease ended. `cause` matters for a stop, `permanent` for a failure."""

    outcome: Outcome
    cause: Cause = Cause.REQUESTED
    permanent: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """An operator wishes the run to rest."""


@dataclass(frozen=True, slots=True)
class Resume:
    """An operator takes back a pause."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """An operator wishes the run to end."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """An operator submits a run again under its name: on from its head, with new budgets."""


Event = Granted | Started | HeadMoved | Renewed | Lapsed | Ended | Pause | Resume | Cancel | Requeue
EVENTS: tuple[type[Any], ...] = (Granted, Started, HeadMoved, Renewed, Lapsed, Ended, Pause, Resume, Cancel, Requeue)


@dataclass(frozen=True, slots=True)
class Closing:
    """How the unended lease that a run had ends in a transition."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition does: the status after it, the lease it ends, and seconds before the run may be granted."""

    status: Status
    closing: Closing | None = None
    backoff: float = 0.0


class IllegalTransition(Exception):
    """An event that the run cannot take where it stands."""

    def __init__(self, phase: Phase, event: type[Any]) -> None:
        super().__init__(f"a run that is {phase.value} cannot take {event.__name__}")
        self.phase, self.event = phase, event


Rule = Callable[[Status, Any], Change]


def _stay(status: Status, _: Event) -> Change:
    return Change(status)


def _grant(status: Status, _: Granted) -> Change:
    return Change(replace(status, state=RunState.RUNNING, lease=LeaseState.HELD, stop=None))


def _regrant(status: Status, _: Granted) -> Change:
    closing = Closing(Outcome.FAULTED, "silent; granted elsewhere")
    return Change(replace(status, lease=LeaseState.HELD, stop=None, faults=status.faults + 1), closing)


def _advance(status: Status, _: HeadMoved) -> Change:
    return Change(replace(status, faults=0))


def _renew(status: Status, _: Renewed) -> Change:
    return Change(replace(status, lease=LeaseState.HELD))


def _lapse(status: Status, event: Lapsed) -> Change:
    if status.policy is Policy.CONTINUE:
        return Change(replace(status, lease=LeaseState.LAPSED))
    return _end_by_lapse(status, event)


def _end_by_lapse(status: Status, _: Lapsed) -> Change:
    return _end(status, Ended(Outcome.FAULTED, reason="its holder fell silent"))


def _end(status: Status, event: Ended) -> Change:
    """The lease's end: success counts whatever was wanted, then the wish, then the budgets."""
    outcome, reason = event.outcome, event.reason
    if outcome is Outcome.STOPPED and event.cause is Cause.REQUESTED and status.stop is None:
        outcome, reason = Outcome.FAULTED, reason or "stopped though nobody had asked"
    failures = status.failures + (outcome is Outcome.FAILED)
    faults = status.faults + (outcome is Outcome.FAULTED)
    spent = outcome is Outcome.FAILED and (event.permanent or failures >= status.max_attempts)
    spent = spent or (outcome is Outcome.FAULTED and faults >= MAX_FAULTS)
    if outcome is Outcome.SUCCEEDED:
        state = RunState.SUCCEEDED
    elif status.wanted is not Wanted.RUN:
        state = RunState.PAUSED if status.wanted is Wanted.PAUSE else RunState.CANCELLED
    else:
        state = RunState.FAILED if spent else RunState.QUEUED
    after = replace(status, state=state, lease=None, stop=None, failures=failures, faults=faults)
    waits = state is RunState.QUEUED and outcome in (Outcome.FAILED, Outcome.FAULTED)
    count = failures if outcome is Outcome.FAILED else faults - 1
    return Change(after, Closing(outcome, reason), compute_backoff(count) if waits else 0.0)


def compute_backoff(count: int) -> float:
    """Seconds to wait after the `count`-th trouble of a kind; none for the zeroth."""
    return 0.0 if count <= 0 else float(min(MAX_BACKOFF, BACKOFF * 2 ** min(count - 1, 16)))


def _move_to(state: RunState, wanted: Wanted) -> Rule:
    """A run without a lease goes where it is wanted at once."""
    return lambda status, _: Change(replace(status, state=state, wanted=wanted))


def _stop_to_pause(status: Status, _: Pause) -> Change:
    return Change(replace(status, wanted=Wanted.PAUSE, stop=StopReason.PAUSE.strengthened(status.stop)))


def _end_lapsed_as(wanted: Wanted, verb: str) -> Rule:
    """Nobody waits for a silent holder when the run is not to go on."""
    ended = Ended(Outcome.FAULTED, reason=f"silent when the run was {verb}")
    return lambda status, _: _end(replace(status, wanted=wanted), ended)


def _withdraw_pause(status: Status, _: Resume) -> Change:
    return Change(replace(status, wanted=Wanted.RUN))


def _stop_to_cancel(status: Status, _: Cancel) -> Change:
    return Change(replace(status, wanted=Wanted.CANCEL, stop=StopReason.CANCEL))


def _requeue(status: Status, _: Requeue) -> Change:
    return Change(replace(status, state=RunState.QUEUED, wanted=Wanted.RUN, failures=0, faults=0))


_P = Phase
_AFTER_END = (_P.SUCCEEDED, _P.FAILED, _P.QUEUED)

#: (phase, event) → what happens, and every phase it may lead to. What is not here is refused.
TABLE: Mapping[tuple[Phase, type[Any]], tuple[Rule, tuple[Phase, ...]]] = {
    (_P.QUEUED, Granted): (_grant, (_P.RUNNING,)),
    (_P.QUEUED, Pause): (_move_to(RunState.PAUSED, Wanted.PAUSE), (_P.PAUSED,)),
    (_P.QUEUED, Resume): (_stay, (_P.QUEUED,)),
    (_P.QUEUED, Cancel): (_move_to(RunState.CANCELLED, Wanted.CANCEL), (_P.CANCELLED,)),
    (_P.QUEUED, Requeue): (_stay, (_P.QUEUED,)),
    (_P.RUNNING, Started): (_stay, (_P.RUNNING,)),
    (_P.RUNNING, HeadMoved): (_advance, (_P.RUNNING,)),
    (_P.RUNNING, Lapsed): (_lapse, (_P.LAPSED, _P.QUEUED, _P.FAILED)),
    (_P.RUNNING, Ended): (_end, _AFTER_END),
    (_P.RUNNING, Pause): (_stop_to_pause, (_P.PAUSING,)),
    (_P.RUNNING, Resume): (_stay, (_P.RUNNING,)),
    (_P.RUNNING, Cancel): (_stop_to_cancel, (_P.CANCELLING,)),
    (_P.RUNNING, Requeue): (_stay, (_P.RUNNING,)),
    (_P.PAUSING, Started): (_stay, (_P.PAUSING,)),
    (_P.PAUSING, HeadMoved): (_advance, (_P.PAUSING,)),
    (_P.PAUSING, Lapsed): (_end_by_lapse, (_P.PAUSED,)),
    (_P.PAUSING, Ended): (_end, (_P.SUCCEEDED, _P.PAUSED)),
    (_P.PAUSING, Pause): (_stay, (_P.PAUSING,)),
    (_P.PAUSING, Resume): (_withdraw_pause, (_P.RUNNING,)),
    (_P.PAUSING, Cancel): (_stop_to_cancel, (_P.CANCELLING,)),
    (_P.PAUSING, Requeue): (_withdraw_pause, (_P.RUNNING,)),
    (_P.CANCELLING, Started): (_stay, (_P.CANCELLING,)),
    (_P.CANCELLING, HeadMoved): (_advance, (_P.CANCELLING,)),
    (_P.CANCELLING, Lapsed): (_end_by_lapse, (_P.CANCELLED,)),
    (_P.CANCELLING, Ended): (_end, (_P.SUCCEEDED, _P.CANCELLED)),
    (_P.CANCELLING, Cancel): (_stay, (_P.CANCELLING,)),
    (_P.LAPSED, Granted): (_regrant, (_P.RUNNING,)),
    (_P.LAPSED, Started): (_stay, (_P.LAPSED,)),
    (_P.LAPSED, HeadMoved): (_advance, (_P.LAPSED,)),
    (_P.LAPSED, Renewed): (_renew, (_P.RUNNING,)),
    (_P.LAPSED, Ended): (_end, _AFTER_END),
    (_P.LAPSED, Pause): (_end_lapsed_as(Wanted.PAUSE, "paused"), (_P.PAUSED,)),
    (_P.LAPSED, Resume): (_stay, (_P.LAPSED,)),
    (_P.LAPSED, Cancel): (_end_lapsed_as(Wanted.CANCEL, "cancelled"), (_P.CANCELLED,)),
    (_P.LAPSED, Requeue): (_stay, (_P.LAPSED,)),
    (_P.PAUSED, Pause): (_stay, (_P.PAUSED,)),
    (_P.PAUSED, Resume): (_move_to(RunState.QUEUED, Wanted.RUN), (_P.QUEUED,)),
    (_P.PAUSED, Cancel): (_move_to(RunState.CANCELLED, Wanted.CANCEL), (_P.CANCELLED,)),
    (_P.PAUSED, Requeue): (_requeue, (_P.QUEUED,)),
    (_P.SUCCEEDED, Requeue): (_requeue, (_P.QUEUED,)),
    (_P.FAILED, Requeue): (_requeue, (_P.QUEUED,)),
    (_P.CANCELLED, Cancel): (_stay, (_P.CANCELLED,)),
    (_P.CANCELLED, Requeue): (_requeue, (_P.QUEUED,)),
}


def step(status: Status, event: Event) -> Change:
    """Carries out one event; IllegalTransition where the table has none."""
    entry = TABLE.get((status.phase, type(event)))
    if entry is None:
        raise IllegalTransition(status.phase, type(event))
    return entry[0](status, event)


DIAGRAM = Path(__file__).parents[1] / "docs" / "lifecycle.md"


def render_diagram() -> str:
    """`docs/lifecycle.md`: the table as a Mermaid state diagram, events that change nothing left out."""
    return "\n".join(_diagram_lines()) + "\n"


def _diagram_lines() -> Iterator[str]:
    yield "# The life of a run"
    yield ""
    yield "Drawn from the table in `coordinator/lifecycle.py` by `python -m coordinator.lifecycle`; edit that one."
    yield ""
    yield "In *running*, *pausing*, *cancelling* and *lapsed* a run has one lease that has not ended; elsewhere none."
    yield "Events that leave a run where it is are not drawn; all other pairs of state and event are refused."
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {Phase.QUEUED}"
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), (_, targets) in TABLE.items():
        for target in targets:
            if target is not phase:
                arrows.setdefault((phase, target), []).append(event.__name__)
    for (phase, target), names in arrows.items():
        yield f"    {phase} --> {target}: {', '.join(names)}"
    yield from (f"    {phase} --> [*]" for phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED))
    yield "```"


if __name__ == "__main__":
    DIAGRAM.write_text(render_diagram())
    print(f"wrote {DIAGRAM.name}", file=sys.stderr)

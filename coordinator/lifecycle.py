"""The states of a run and of its lease, and the only place where they change.

A run is *queued* until it is granted, *running* while it has a lease that has not ended, *paused*, or over:
*succeeded*, *failed*, *cancelled*. Its lease is *held*, or has *lapsed* (no heartbeat from its holder for a TTL), or
has *ended*. Verbs only set what is `wanted`; the end of the lease changes the state of the run. `Phase` folds the three
into the nine situations that behave differently, `TABLE` lists the events that each of them accepts and where they
lead, and `step` applies one. A pair that the table does not have is an `IllegalTransition`. The diagram in
`docs/lifecycle.md` is drawn from the table: `python -m coordinator.lifecycle`.

A lapse is not an end. The run can be granted to another host and no attempt is spent; until that happens, the lapsed
lease still counts. It ends only where the policy says so (`stop`), or where nothing would wait for its holder: when the
run is to be paused or cancelled.

Two budgets are counted apart. `failures` are the run's own and end it at `max_attempts`. `faults` are the
infrastructure's, counted since the head last moved. They do not count against `max_attempts`, but a run that meets
MAX_FAULTS of them without a single new checkpoint is considered their cause and fails. A requested stop, an agent that
leaves and lost trust count against neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

MAX_FAULTS = 20  #: infrastructure faults without a new head, after which a run fails
BACKOFF = 2.0  #: seconds before the first retry after a failure, or the second after a fault; doubled each time
MAX_BACKOFF = 300.0
STOP_GRACE = 60.0  #: seconds that a stopping trainer has to save before it is killed


class RunState(StrEnum):
    """The state of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Wanted(StrEnum):
    """What a user last requested of a run."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class LeaseState(StrEnum):
    """The state of a lease."""

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
    """Who or what stopped a trainer."""

    REQUESTED = "requested"
    LEAVING = "leaving"
    TRUST_LOST = "trust_lost"


class Policy(StrEnum):
    """What a trainer does when its lease can no longer be trusted."""

    CONTINUE = "continue"
    STOP = "stop"


class StopReason(StrEnum):
    """Why a holder is asked to stop, from the weakest reason to the strongest."""

    PREEMPT = "preempt"
    PAUSE = "pause"
    CANCEL = "cancel"

    def strengthened(self, other: StopReason | None) -> StopReason:
        """Return the stronger of the two reasons: a stop never becomes weaker."""
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
    """Everything about a run that its transitions depend on. `lease` is None when it has no unended lease."""

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
        """The row of the table that applies."""
        if self.state is not RunState.RUNNING:
            return Phase(self.state.value)
        if self.lease is LeaseState.LAPSED:
            return Phase.LAPSED
        return {Wanted.RUN: Phase.RUNNING, Wanted.PAUSE: Phase.PAUSING, Wanted.CANCEL: Phase.CANCELLING}[self.wanted]


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease on the run was granted. A lapsed lease ends with it."""


@dataclass(frozen=True, slots=True)
class Started:
    """The holder reported the checkpoint that it resumes from."""


@dataclass(frozen=True, slots=True)
class HeadMoved:
    """A checkpoint became the head: the run makes progress, so its faults are forgotten."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The holder of a lapsed lease came back."""


@dataclass(frozen=True, slots=True)
class Lapsed:
    """No heartbeat has arrived from the holder for longer than its lease lasts."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The lease ended. `cause` matters for a stop, `permanent` for a failure."""

    outcome: Outcome
    cause: Cause = Cause.REQUESTED
    permanent: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """A user requests that the run pause."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A user requests that the run continue."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """A user requests that the run end."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """A user submits a run again under its name: it continues from its head, with new budgets."""


Event = Granted | Started | HeadMoved | Renewed | Lapsed | Ended | Pause | Resume | Cancel | Requeue
EVENTS: tuple[type[Any], ...] = (Granted, Started, HeadMoved, Renewed, Lapsed, Ended, Pause, Resume, Cancel, Requeue)


@dataclass(frozen=True, slots=True)
class Closing:
    """How a transition ends the unended lease of a run."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of a transition: the status after it, the lease that it ends, and seconds before the run may be
    granted.
    """

    status: Status
    closing: Closing | None = None
    backoff: float = 0.0


class IllegalTransition(Exception):
    """An event that a run does not accept in its phase."""

    def __init__(self, phase: Phase, event: type[Any]) -> None:
        super().__init__(f"a run that is {phase.value} cannot take {event.__name__}")
        self.phase, self.event = phase, event


Rule = Callable[[Status, Any], Change]


def _stay(status: Status, _: Event) -> Change:
    return Change(status)


def _grant(status: Status, _: Granted) -> Change:
    return Change(replace(status, state=RunState.RUNNING, lease=LeaseState.HELD, stop=None))


def _regrant(status: Status, _: Granted) -> Change:
    closing = Closing(Outcome.FAULTED, "no heartbeat; granted to another host")
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
    return _end(status, Ended(Outcome.FAULTED, reason="no heartbeat from its holder"))


def _end(status: Status, event: Ended) -> Change:
    """Apply the end of the lease: success counts whatever was wanted, then what is wanted decides, then the budgets."""
    outcome, reason = event.outcome, event.reason
    if outcome is Outcome.STOPPED and event.cause is Cause.REQUESTED and status.stop is None:
        outcome, reason = Outcome.FAULTED, reason or "stopped without a request"
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
    """Return the seconds to wait after the `count`-th failure or fault in a row; none for the zeroth."""
    return 0.0 if count <= 0 else float(min(MAX_BACKOFF, BACKOFF * 2 ** min(count - 1, 16)))


def _move_to(state: RunState, wanted: Wanted) -> Rule:
    """Return the rule for a run without a lease, which changes its state at once."""
    return lambda status, _: Change(replace(status, state=state, wanted=wanted))


def _stop_to_pause(status: Status, _: Pause) -> Change:
    return Change(replace(status, wanted=Wanted.PAUSE, stop=StopReason.PAUSE.strengthened(status.stop)))


def _end_lapsed_as(wanted: Wanted, verb: str) -> Rule:
    """Return the rule for a lapsed run that is not to continue: its lease ends at once."""
    ended = Ended(Outcome.FAULTED, reason=f"no heartbeat from its holder when the run was {verb}")
    return lambda status, _: _end(replace(status, wanted=wanted), ended)


def _withdraw_pause(status: Status, _: Resume) -> Change:
    return Change(replace(status, wanted=Wanted.RUN))


def _stop_to_cancel(status: Status, _: Cancel) -> Change:
    return Change(replace(status, wanted=Wanted.CANCEL, stop=StopReason.CANCEL))


def _requeue(status: Status, _: Requeue) -> Change:
    return Change(replace(status, state=RunState.QUEUED, wanted=Wanted.RUN, failures=0, faults=0))


_P = Phase
_AFTER_END = (_P.SUCCEEDED, _P.FAILED, _P.QUEUED)

#: (phase, event) → the rule, and every phase that it may lead to. Any other pair is refused.
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
    """Apply one event to a status; IllegalTransition where the table has no entry."""
    entry = TABLE.get((status.phase, type(event)))
    if entry is None:
        raise IllegalTransition(status.phase, type(event))
    return entry[0](status, event)


DIAGRAM = Path(__file__).parents[1] / "docs" / "lifecycle.md"


def render_diagram() -> str:
    """Return `docs/lifecycle.md`: the table as a Mermaid state diagram, without the events that change nothing."""
    return "\n".join(_diagram_lines()) + "\n"


def _diagram_lines() -> Iterator[str]:
    yield "# The life of a run"
    yield ""
    yield "Generated from the table in `coordinator/lifecycle.py` by `python -m coordinator.lifecycle`."
    yield ""
    yield "A *running*, *pausing*, *cancelling* or *lapsed* run has one lease that has not ended; others have none."
    yield "Events that do not change the state are not drawn; all other pairs of state and event are refused."
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

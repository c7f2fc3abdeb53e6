"""The state machine, exhaustively: every status against every event (S8)."""

from dataclasses import replace
from itertools import product

import pytest

from coordinator.lifecycle import (
    DIAGRAM,
    EVENTS,
    MAX_BACKOFF,
    MAX_FAULTS,
    TABLE,
    Cancel,
    Cause,
    Ended,
    Event,
    Granted,
    HeadMoved,
    IllegalTransition,
    Lapsed,
    LeaseState,
    Outcome,
    Pause,
    Phase,
    Policy,
    Renewed,
    Requeue,
    Resume,
    RunState,
    Started,
    Status,
    StopReason,
    Wanted,
    compute_backoff,
    render_diagram,
    step,
)

ENDS = [Ended(outcome, cause, permanent) for outcome, cause, permanent in product(Outcome, Cause, (False, True))]
INSTANCES: dict[type, list[Event]] = {
    **{event: [event()] for event in EVENTS if event is not Ended},
    Ended: list(ENDS),
}
HELD = Status(RunState.RUNNING, lease=LeaseState.HELD)


def statuses(phase: Phase) -> list[Status]:
    """Statuses of a phase, with every policy, stop and count that matters."""
    running = {
        Phase.RUNNING: (Wanted.RUN, LeaseState.HELD),
        Phase.PAUSING: (Wanted.PAUSE, LeaseState.HELD),
        Phase.CANCELLING: (Wanted.CANCEL, LeaseState.HELD),
        Phase.LAPSED: (Wanted.RUN, LeaseState.LAPSED),
    }
    counts = [(0, 0), (2, MAX_FAULTS - 1)]
    if phase in running:
        wanted, lease = running[phase]
        stops = {Phase.PAUSING: [StopReason.PAUSE], Phase.CANCELLING: [StopReason.CANCEL]}.get(
            phase, [None, *StopReason]
        )
        return [
            Status(RunState.RUNNING, wanted, lease, policy, stop, failures, faults)
            for policy, stop, (failures, faults) in product(Policy, stops, counts)
        ]
    wanted = {Phase.PAUSED: Wanted.PAUSE, Phase.CANCELLED: Wanted.CANCEL}.get(phase, Wanted.RUN)
    return [Status(RunState(phase.value), wanted, None, failures=f, faults=g) for f, g in counts]


PAIRS = list(product(Phase, EVENTS))


@pytest.mark.parametrize(("phase", "event"), PAIRS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_pair_leads_where_the_table_says_or_is_refused(phase: Phase, event: type) -> None:
    reached = set()
    for status, instance in product(statuses(phase), INSTANCES[event]):
        assert status.phase is phase
        if (phase, event) in TABLE:
            reached.add(step(status, instance).status.phase)
        else:
            with pytest.raises(IllegalTransition, match=rf"{phase.value}.*{event.__name__}"):
                step(status, instance)
    assert reached == set(TABLE[phase, event][1] if (phase, event) in TABLE else ())


@pytest.mark.parametrize(("phase", "event"), list(TABLE), ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_run_has_a_lease_exactly_while_it_runs_and_closes_the_one_it_loses(phase: Phase, event: type) -> None:
    for status, instance in product(statuses(phase), INSTANCES[event]):
        change = step(status, instance)
        assert (change.status.lease is not None) == (change.status.state is RunState.RUNNING)
        had_and_lost = status.lease is not None and (change.status.lease is None or event is Granted)
        assert (change.closing is not None) == had_and_lost
        assert change.backoff == 0 or change.status.state is RunState.QUEUED


def test_success_counts_whatever_was_wanted() -> None:
    for wanted in Wanted:
        assert step(replace(HELD, wanted=wanted), Ended(Outcome.SUCCEEDED)).status.state is RunState.SUCCEEDED


def test_own_failures_end_the_run_at_max_attempts_and_wait_longer_each_time() -> None:
    status, waits = HELD, []
    while status.state is RunState.RUNNING:
        change = step(status, Ended(Outcome.FAILED))
        waits.append(change.backoff)
        status = change.status if change.status.state is RunState.FAILED else step(change.status, Granted()).status
    assert (status.failures, status.faults) == (3, 0)
    assert waits == [2, 4, 0]


def test_a_permanent_failure_is_not_tried_again() -> None:
    assert step(HELD, Ended(Outcome.FAILED, permanent=True)).status.state is RunState.FAILED


def test_faults_spend_no_attempt_and_the_first_waits_for_nothing() -> None:
    first = step(HELD, Ended(Outcome.FAULTED))
    assert (first.status.state, first.status.failures, first.status.faults, first.backoff) == (RunState.QUEUED, 0, 1, 0)
    second = step(step(first.status, Granted()).status, Ended(Outcome.FAULTED))
    assert second.backoff == 2


def test_faults_without_a_new_head_end_a_run_at_last_and_a_new_head_forgets_them() -> None:
    poison = replace(HELD, faults=MAX_FAULTS - 1)
    assert step(poison, Ended(Outcome.FAULTED)).status.state is RunState.FAILED
    advanced = step(poison, HeadMoved()).status
    assert step(advanced, Ended(Outcome.FAULTED)).status.state is RunState.QUEUED


@pytest.mark.parametrize("cause", [Cause.LEAVING, Cause.TRUST_LOST])
def test_leaving_and_lost_trust_spend_nothing_and_wait_for_nothing(cause: Cause) -> None:
    change = step(HELD, Ended(Outcome.STOPPED, cause))
    assert change.status == replace(HELD, state=RunState.QUEUED, lease=None)
    assert change.backoff == 0


def test_a_preempted_run_spends_nothing_but_a_stop_nobody_wished_is_a_fault() -> None:
    preempted = step(replace(HELD, stop=StopReason.PREEMPT), Ended(Outcome.STOPPED))
    assert preempted.status.faults == 0
    assert step(HELD, Ended(Outcome.STOPPED)).status.faults == 1


def test_a_lapse_is_no_end_under_continue_and_one_under_stop() -> None:
    lapsed = step(HELD, Lapsed())
    assert (lapsed.status.phase, lapsed.closing, lapsed.status.faults) == (Phase.LAPSED, None, 0)
    assert step(lapsed.status, Renewed()).status == HELD
    stopped = step(replace(HELD, policy=Policy.STOP), Lapsed())
    assert stopped.closing is not None and stopped.status.state is RunState.QUEUED


def test_a_lapsed_lease_goes_on_counting_until_somebody_else_is_granted_the_run() -> None:
    lapsed = step(HELD, Lapsed()).status
    assert step(lapsed, Started()).status == lapsed
    assert step(lapsed, Ended(Outcome.SUCCEEDED)).status.state is RunState.SUCCEEDED
    regranted = step(lapsed, Granted())
    assert regranted.closing is not None and regranted.closing.outcome is Outcome.FAULTED
    assert regranted.closing.reason == "no heartbeat; granted to another host"
    assert (regranted.status.failures, regranted.status.faults) == (0, 1)


def test_a_stop_only_sharpens() -> None:
    for first, second in product(StopReason, StopReason):
        order = list(StopReason)
        assert order.index(first.strengthened(second)) == max(order.index(first), order.index(second))
    cancelling = step(step(HELD, Pause()).status, Cancel()).status
    assert cancelling.stop is StopReason.CANCEL
    with pytest.raises(IllegalTransition):
        step(cancelling, Pause())


def test_a_pause_taken_back_while_the_trainer_stops_queues_the_run_again() -> None:
    resumed = step(step(HELD, Pause()).status, Resume()).status
    assert resumed.stop is StopReason.PAUSE
    assert step(resumed, Ended(Outcome.STOPPED)).status == Status()


def test_requeue_starts_with_new_budgets() -> None:
    ended = Status(RunState.FAILED, failures=3, faults=7)
    assert step(ended, Requeue()).status == Status()


def test_backoff_grows_and_is_capped() -> None:
    waits = [compute_backoff(count) for count in range(40)]
    assert waits == sorted(waits) and waits[0] == 0 and waits[-1] == MAX_BACKOFF


def test_the_diagram_in_the_docs_is_the_table() -> None:
    assert DIAGRAM.read_text() == render_diagram(), "run: python -m coordinator.lifecycle"

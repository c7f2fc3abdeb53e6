"""The desired leases on a host: set arithmetic, which heartbeat replies count, terms of trust (S3, S10)."""

from hypothesis import given
from hypothesis import strategies as st

from agent.leases import DesiredLease, HeartbeatReply, LeasePlan, SessionState, StopReason, Term, plan
from relay.timing import TEST

RUN = DesiredLease(run=True, work="assignment")
STOP = DesiredLease(run=False, reason=StopReason.CANCEL, grace=5.0)
SEEN = DesiredLease(run=True)  # running, and the coordinator knows: no assignment comes with it any more


def test_the_plan_is_the_difference_of_what_is_held_and_wished() -> None:
    wished = {"new": RUN, "kept": SEEN, "stopped": STOP, "never-begun": STOP}
    assert plan({"kept", "stopped", "gone"}, wished) == LeasePlan(
        start=frozenset({"new"}),
        stop=frozenset({"stopped"}),
        drop=frozenset({"gone"}),
        decline=frozenset({"never-begun"}),
    )


def test_what_was_begun_here_is_never_begun_again() -> None:
    """S10: a late heartbeat reply still names a lease that this host has just completed."""
    assert plan(set(), {"done": RUN}, frozenset({"done"})) == LeasePlan()


def test_a_lease_that_only_the_coordinator_thinks_we_hold_is_not_started() -> None:
    assert plan(set(), {"lost": SEEN}) == LeasePlan()


leases = st.sets(st.sampled_from("abcdef"))


@given(held=leases, begun=leases, wished=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([RUN, SEEN, STOP])))
def test_a_plan_gives_each_lease_at_most_one_thing_to_do(
    held: set[str], begun: set[str], wished: dict[str, DesiredLease]
) -> None:
    made = plan(held, wished, frozenset(begun))
    parts = [made.start, made.stop, made.drop, made.decline]
    assert sum(map(len, parts)) == len(frozenset().union(*parts))
    assert made.drop | made.stop <= held
    assert not (made.start | made.decline) & (held | begun)


def beat(version: int, *leases: str, answers: int = 0, session: str = "s") -> HeartbeatReply:
    return HeartbeatReply(session, version, answers, dict.fromkeys(leases, SEEN))


def test_beats_of_other_sessions_and_lower_versions_are_ignored() -> None:
    """F17: delayed, doubled and reordered beats."""
    session, _ = SessionState("s", 0.0).apply_reply(beat(4), {})
    assert session.accepts(beat(4)) and session.accepts(beat(5))
    assert not session.accepts(beat(3))
    assert not session.accepts(beat(9, session="older"))


def test_trust_counts_from_the_sending_of_the_answered_heartbeat() -> None:
    """S3: a slow answer does not extend it."""
    session = SessionState("s", 10.0).record_sent(1, 12.0, {"a"}).record_sent(2, 14.0, {"a"})
    session, terms = session.apply_reply(beat(1, "a", answers=1), {"a": Term(11.0)})
    assert terms == {"a": Term(12.0)}
    session, terms = session.apply_reply(beat(1, "a", answers=2), terms)
    assert terms["a"].stop_at(TEST) == TEST.stop_after(14.0)


def test_a_new_lease_is_trusted_from_what_was_answered_before_its_grant() -> None:
    session = SessionState("s", 10.0).record_sent(1, 15.0, set())
    session, terms = session.apply_reply(beat(2, "new", answers=1), {})  # granted after 10.0, maybe before 15.0
    assert terms == {"new": Term(10.0)}
    session, terms = session.record_sent(2, 20.0, {"new"}).apply_reply(beat(2, "new"), terms)  # pushed: renews nothing
    assert terms == {"new": Term(10.0)}


def test_a_wait_moves_no_trust() -> None:
    """S3: the database could not be read, so a lease granted by another replica before it may be named after it."""
    session = SessionState("s", 10.0).record_sent(1, 15.0, set()).record_wait(1)
    assert not session.sent
    assert session.apply_reply(beat(2, "new"), {})[1] == {"new": Term(10.0)}


def test_a_lease_taken_up_again_has_no_trust_before_a_heartbeat_renewed_it() -> None:
    session = SessionState("s", 10.0, frozenset({"old"})).record_sent(1, 11.0, {"old"})
    session, terms = session.apply_reply(beat(1, "old"), {})
    assert terms == {}
    assert session.apply_reply(beat(1, "old", answers=1), terms)[1] == {"old": Term(11.0)}


@given(st.lists(st.floats(0, 100)))
def test_trust_is_never_shortened(sent: list[float]) -> None:
    term, ends = Term(50.0), [50.0]
    for at in sent:
        term = term.renew(at)
        ends.append(term.t0)
    assert ends == sorted(ends)

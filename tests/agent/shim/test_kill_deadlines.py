"""The shim's rules about stopping and killing, without a process or a clock."""

import pytest

from agent.shim.kill_deadlines import KillDeadlines


def sentence(*, policy: str = "continue", trust: float | None = None) -> KillDeadlines:
    return KillDeadlines({"policy": policy, "trust": trust, "grace": 10.0, "orphan_limit": 100.0}, now=0.0)


def test_policy_stop_needs_a_deadline() -> None:
    with pytest.raises(ValueError, match="trust"):
        sentence(policy="stop")


def test_trust_only_moves_forward() -> None:
    held = sentence(policy="stop", trust=10.0)
    assert held.renew(30.0) and held.renew(20.0)
    assert held.trust == held.next_moment == 30.0


def test_s3_no_renewal_undoes_a_kill_that_has_begun() -> None:
    held = sentence(policy="stop", trust=10.0)
    held.pass_time(10.0)
    assert (held.kill_reason, held.trust_lost) == ("trust lapsed", True)
    assert not held.renew(1000.0)
    assert held.trust == 10.0


def test_under_continue_nothing_lapses() -> None:
    held = sentence(trust=10.0)
    held.contact(90.0)
    assert not held.pass_time(99.0)
    assert (held.trust, held.kill_reason) == (None, None)


def test_a_repeated_stop_asks_once_and_only_shortens() -> None:
    held = sentence()
    assert held.stop(0.0, 30.0, "preempt")
    assert not held.stop(1.0, 60.0, "cancel")
    assert held.kill_at == 30.0
    assert not held.stop(1.0, 4.0, "cancel")
    assert (held.kill_at, held.stop_reason) == (5.0, "preempt")
    held.pass_time(5.0)
    assert (held.kill_reason, held.trust_lost) == ("grace over", False)


def test_without_an_agent_it_is_stopped_then_killed() -> None:
    held = sentence()
    held.contact(50.0)
    assert held.next_moment == 150.0
    assert not held.pass_time(149.0)
    assert held.pass_time(150.0)
    assert (held.stop_reason, held.next_moment) == ("no agent", 160.0)
    assert not held.pass_time(160.0)
    assert held.kill_reason == "grace over"


def test_the_first_reason_to_kill_stays() -> None:
    held = sentence()
    held.kill(1.0, "stalled")
    held.kill(2.0, "asked")
    assert (held.kill_reason, held.kill_began) == ("stalled", 1.0)
    assert not held.pass_time(1e9)

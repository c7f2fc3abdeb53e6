"""Pauses between tries: they grow to a bound, are never alike, and are as long as the other side asks."""

from random import Random

from relay.backoff import Backoff


def test_pauses_stay_below_a_bound_that_doubles_up_to_a_cap() -> None:
    backoff = Backoff(0.5, 60.0, Random(1))
    assert all(0.0 <= backoff.next_pause() <= min(60.0, 0.5 * 2.0**failures) for failures in range(1000))


def test_clients_that_failed_together_do_not_come_back_together() -> None:
    pauses = set()
    for seed in range(20):
        backoff = Backoff(1.0, 60.0, Random(seed))
        pauses.add([backoff.next_pause() for _ in range(4)][-1])
    assert len(pauses) == 20


def test_a_server_that_says_when_to_come_back_is_taken_at_its_word() -> None:
    assert Backoff(1.0, 2.0, Random(1)).next_pause(3000.0) == 3000.0


def test_after_a_success_it_starts_over() -> None:
    backoff = Backoff(1.0, 60.0, Random(1))
    for _ in range(10):
        backoff.next_pause()
    assert backoff.failures == 10 and backoff.reset()
    assert backoff.next_pause() <= 1.0
    backoff.reset()
    assert not backoff.reset()

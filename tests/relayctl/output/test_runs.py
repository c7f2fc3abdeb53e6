"""Texts about runs that several commands print."""

import pytest

from relay.v1 import runs_pb2 as pb
from relayctl.output.runs import describe_attempt, describe_state, format_state, list_remedies
from tests.relayctl.messages import NOW, a_run, an_error, attempt


def test_what_is_wished_shows_beside_the_state() -> None:
    assert format_state(a_run(wanted=pb.Run.PAUSE)) == "running, pausing"
    assert format_state(a_run(wanted=pb.Run.CANCEL)) == "running, cancelling"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (pb.Run.QUEUED, "is queued: because"),
        (pb.Run.SUCCEEDED, "succeeded: because"),
        (pb.Run.FAILED, "failed: because"),
        (pb.Run.CANCELLED, "was cancelled: because"),
    ],
)
def test_a_state_in_a_sentence(state: pb.Run.State.ValueType, said: str) -> None:
    assert describe_state(a_run(state=state, reason="because")) == said


def test_a_reason_that_names_the_state_is_not_said_twice() -> None:
    stopped = a_run(state=pb.Run.CANCELLED, reason="cancelled by a user: enough")
    assert describe_state(stopped) == "was cancelled by a user: enough"
    assert format_state(a_run(state=pb.Run.CANCELLED, reason="cancelled")) == "cancelled"


def test_a_failed_attempt_says_its_reason_and_each_reason_what_to_do_once() -> None:
    ended = {"state": pb.Attempt.ENDED, "outcome": pb.Attempt.FAILED}
    failed = [attempt(n, **ended, error=an_error("EXIT_CODE", "exit code 3")) for n in (1, 2)]
    assert describe_attempt(failed[0], NOW).endswith("failed (EXIT_CODE): exit code 3")
    run = a_run(state=pb.Run.FAILED, error=an_error("STORE_UNUSABLE", "no credentials"))
    exit_code, store = list_remedies(run, failed)
    assert exit_code.startswith("EXIT_CODE: The trainer exited") and "`relayctl logs sums -n 50`" in exit_code
    assert store.endswith("in the agent's environment (docs/operations.md#stores).")
    assert list_remedies(a_run(state=pb.Run.SUCCEEDED), failed) == []
    assert list_remedies(run, [attempt(error=an_error("LATER", "of a newer coordinator"))])[0].startswith("STORE_")

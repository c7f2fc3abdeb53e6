"""Texts about runs that several commands print."""

import pytest

from relay.v1 import runs_pb2 as pb
from relayctl.output.runs import describe_state, format_state
from tests.relayctl.messages import a_run


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

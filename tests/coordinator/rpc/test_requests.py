"""What is refused before the database is asked (F18), and names."""

import contextlib
import math
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rpc import requests, responses
from relay.errors import RelayError
from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2

ID = uuid.uuid4()
DIGEST = "sha256:" + "0" * 64


def test_names_go_there_and_back() -> None:
    assert requests.parse_run_id("runs/a.b-c_d") == "a.b-c_d"
    assert requests.parse_lease_id(responses.format_lease_name("r", ID)) == ID
    assert requests.parse_checkpoint_id(responses.format_checkpoint_name("r", ID)) == ID


@given(st.text(max_size=80))
def test_what_is_no_name_is_refused_and_nothing_else_happens(text: str) -> None:
    for read in (
        requests.parse_run_id,
        requests.parse_agent_name,
        requests.parse_lease_id,
        requests.parse_checkpoint_id,
    ):
        for name in (text, f"runs/{text}", f"agents/{text}", f"runs/r/leases/{text}"):
            try:
                read(name)
            except RelayError as error:
                assert error.reason == "REQUEST_INVALID"


READERS: dict[type[Message], Callable[[Any], object]] = {
    pb.Hello: requests.parse_hello,
    pb.RegisterCheckpointRequest: requests.parse_new_checkpoint,
    pb.CompleteLeaseRequest: requests.parse_completion,
    runs_pb2.CreateRunRequest: requests.parse_submission,
}


@given(st.binary(max_size=400), st.sampled_from(list(READERS)))
def test_arbitrary_bytes_that_parse_are_read_or_refused(data: bytes, kind: type[Message]) -> None:
    """F18: a hostile message becomes a domain error, never a crash."""
    message = kind()
    with contextlib.suppress(DecodeError, RelayError):
        message.ParseFromString(data)
        READERS[kind](message)


def test_too_many_held_leases_are_refused() -> None:
    held = [pb.HeldLease(lease=f"runs/r/leases/{uuid.uuid4()}") for _ in range(requests.MAX_HELD + 1)]
    with pytest.raises(RelayError, match="the limit is"):
        requests.parse_held(held)


def test_a_place_listed_twice_counts_once() -> None:
    """F17."""
    item = pb.HeldLease(lease=responses.format_lease_name("r", ID), slots=[0])
    assert len(requests.parse_held([item, item])) == 1


def test_metrics_without_a_number_are_left_out_of_the_registry() -> None:
    request = pb.RegisterCheckpointRequest(
        step=1, manifest_digest=DIGEST, metrics={"loss": math.nan, "worst": math.inf, "eval_loss": 0.5}
    )
    assert requests.parse_new_checkpoint(request).metrics == {"eval_loss": 0.5}


@pytest.mark.parametrize("step", [-1, 2**63 - 1])
def test_steps_out_of_range_are_refused(step: int) -> None:
    with pytest.raises(RelayError):
        requests.parse_new_checkpoint(pb.RegisterCheckpointRequest(step=step, manifest_digest=DIGEST))


@pytest.mark.parametrize(
    ("store", "uri"), [("relay", "host://a"), ("", "://x"), ("relay", "relay://a b"), ("x", "x://\0")]
)
def test_copies_say_where_they_are(store: str, uri: str) -> None:
    with pytest.raises(RelayError):
        requests.parse_copy(runs_pb2.Copy(store=store, uri=uri))


def test_the_same_report_has_the_same_digest_and_another_another() -> None:
    """S9: a repetition is recognised by its content."""
    one = pb.CompleteLeaseRequest(lease="l", succeeded=pb.Succeeded())
    assert (
        requests.parse_completion(one).digest
        == requests.parse_completion(pb.CompleteLeaseRequest.FromString(one.SerializeToString())).digest
    )
    other = pb.CompleteLeaseRequest(lease="l", stopped=pb.Stopped())
    assert requests.parse_completion(one).digest != requests.parse_completion(other).digest

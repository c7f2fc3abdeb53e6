"""Messages as plain values for programs."""

import json

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo

from relay.v1 import agents_pb2
from relay.v1 import runs_pb2 as pb
from relayctl.client.client import as_struct
from relayctl.output.serialize import Output, format_value, format_values, to_plain


def test_names_numbers_times_and_enums_read_well() -> None:
    run = pb.Run(name="runs/a", state=pb.Run.RUNNING, create_time=Timestamp(seconds=1), labels={"b": "2", "a": "1"})
    run.spec.CopyFrom(as_struct({"seed": 42, "lr": 3e-4, "list": [1, {"x": None}]}))
    run.progress.CopyFrom(pb.Progress(step=2**40, metrics={"loss": float("nan"), "lr": 0.5}))
    value = to_plain(run)
    assert value["state"] == "running" and value["create_time"] == "1970-01-01T00:00:01Z"
    assert value["progress"]["step"] == 2**40 and value["progress"]["metrics"] == {"loss": "nan", "lr": 0.5}
    assert value["spec"] == {"seed": 42, "lr": 3e-4, "list": [1, {"x": None}]}
    assert list(value["labels"]) == ["a", "b"]
    json.loads(format_value(value, Output.JSON))


def test_what_has_no_presence_is_always_there() -> None:
    value = to_plain(pb.Run(name="runs/a"))
    assert value["failures"] == 0 and value["inputs"] == [] and value["reason"] == ""
    assert not {"end_time", "head", "output"} & set(value)


def test_durations_are_seconds() -> None:
    assert to_plain(agents_pb2.Welcome(ttl=Duration(seconds=2, nanos=500_000_000)))["ttl"] == 2.5


@pytest.mark.parametrize(
    ("output", "text"), [(Output.JSON, '{\n  "runs": []\n}'), (Output.YAML, "runs: []"), (Output.JSONL, "")]
)
def test_an_empty_list_is_an_envelope(output: Output, text: str) -> None:
    assert format_values("runs", [], output) == text


def test_lines_hold_one_value_each() -> None:
    assert format_values("runs", [{"a": 1}, {"a": "ü"}], Output.JSONL) == '{"a": 1}\n{"a": "ü"}'


def test_a_failure_keeps_its_reason_and_what_nobody_here_knows_its_bytes() -> None:
    failed = pb.Run(name="runs/a")
    failed.error.message = "exit code 3"
    failed.error.details.add().Pack(ErrorInfo(reason="EXIT_CODE", domain="relay"))
    failed.error.details.add(type_url="type.googleapis.com/relay.v9.Unknown", value=b"\xff")
    [known, unknown] = to_plain(failed)["error"]["details"]
    assert known["reason"] == "EXIT_CODE" and known["@type"].endswith("google.rpc.ErrorInfo")
    assert unknown == {"@type": "type.googleapis.com/relay.v9.Unknown", "value": "/w=="}
    json.loads(format_value(to_plain(failed), Output.JSON))


def test_a_spec_reads_the_same_every_time() -> None:
    assert list(to_plain(as_struct({"b": 1, "a": {"d": 1, "c": 2}}))) == ["a", "b"]

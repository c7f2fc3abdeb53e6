"""Pieces of logs become lines again."""

from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from relay.v1 import runs_pb2 as pb
from relayctl.commands.logs import LineReader, format_with_time
from tests.relayctl.deployed import relayctl, run_file


def piece(data: bytes, source: str = "stdout", attempt: int = 1) -> pb.ReadLogsResponse:
    return pb.ReadLogsResponse(attempt=attempt, source=source, data=data, time=Timestamp(seconds=5))


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))), st.data())
def test_any_cut_gives_the_same_lines(lines: list[str], data: st.DataObject) -> None:
    """S7: contents never depend on where the transport cut them."""
    content = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    reader = LineReader()
    read = [line.text for part in pieces for line in reader.read(piece(part))]
    assert [*read, *(line.text for line in reader.unfinished_lines())] == lines


def test_sources_do_not_mix_and_an_open_end_is_kept() -> None:
    reader = LineReader()
    assert list(reader.read(piece(b"out"))) == []
    assert [line.text for line in reader.read(piece(b"err\n", "stderr"))] == ["err"]
    assert [(line.source, line.text) for line in reader.unfinished_lines()] == [("stdout", "out")]


def test_a_line_without_end_is_given_out_in_pieces() -> None:
    reader = LineReader()
    assert sum(len(line.text) for line in reader.read(piece(b"x" * (3 << 20)))) == 3 << 20


def test_a_time_goes_before_the_line() -> None:
    line = next(LineReader().read(piece(b"a\r\n")))
    assert format_with_time(line).endswith("  a") and format_with_time(line).startswith("1970-01-01T")


@pytest.mark.usefixtures("environment")
def test_a_log_is_followed_until_the_run_ends(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "followed"), "-q")
    assert relayctl("logs", "followed", "-f").stdout == "begins at 0\n"
    assert relayctl("logs", "followed", "-n", "1", "--timestamps").stdout.endswith("  begins at 0\n")

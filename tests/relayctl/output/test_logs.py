"""Pieces of a log become its lines again."""

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from relay.v1 import runs_pb2 as pb
from relayctl.output.logs import LineReader, stamped


def piece(data: bytes, source: str = "stdout", attempt: int = 1) -> pb.ReadLogsResponse:
    return pb.ReadLogsResponse(attempt=attempt, source=source, data=data, time=Timestamp(seconds=5))


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))), st.data())
def test_any_cut_gives_the_same_lines(lines: list[str], data: st.DataObject) -> None:
    """S7: contents never depend on where the transport cut them."""
    content = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    reader = LineReader()
    read = [line.text for part in pieces for line in reader.take(piece(part))]
    assert [*read, *(line.text for line in reader.rest())] == lines


def test_sources_do_not_mix_and_an_open_end_is_kept() -> None:
    reader = LineReader()
    assert list(reader.take(piece(b"out"))) == []
    assert [line.text for line in reader.take(piece(b"err\n", "stderr"))] == ["err"]
    assert [(line.source, line.text) for line in reader.rest()] == [("stdout", "out")]


def test_a_line_without_end_is_given_out_in_pieces() -> None:
    reader = LineReader()
    assert sum(len(line.text) for line in reader.take(piece(b"x" * (3 << 20)))) == 3 << 20


def test_a_time_goes_before_the_line() -> None:
    line = next(LineReader().take(piece(b"a\r\n")))
    assert stamped(line).endswith("  a") and stamped(line).startswith("1970-01-01T")

"""The diagrams of docs/protocol.md show the messages that are exchanged today."""

from tests.simulation.diagrams import PAGE, page


def test_the_diagrams_are_fresh() -> None:
    assert PAGE.read_text() == page(), "python -m tests.simulation diagrams"

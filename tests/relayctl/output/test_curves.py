"""Curves in the terminal and as a picture."""

from pathlib import Path

from relayctl.output import curves
from relayctl.output.views import Series

CURVE = Series("train_loss", list(range(1, 41)), [1 / step for step in range(1, 40)] + [float("nan")], [20])


def test_in_the_terminal_with_its_restarts_said() -> None:
    text = curves.in_terminal([CURVE], 60)
    assert "train_loss" in text and "1 restart, marked" in text
    assert "┊" in text and text.splitlines()[-1].split() == ["step", "1", "39"]
    assert max(map(len, text.splitlines())) <= 60


def test_a_point_and_a_flat_line_can_be_drawn() -> None:
    for values in ([2.0], [3.0, 3.0, 3.0]):
        assert curves.in_terminal([Series("loss", list(range(len(values))), values, [])], None).count("\n") == 15


def test_a_picture(tmp_path: Path) -> None:
    curves.png([CURVE, CURVE], tmp_path / "curve.png", "sums")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_drawn_when_nothing_is_named() -> None:
    nothing = Series("broken", [1], [float("nan")], [])
    speed = Series("tokens_per_second", [1, 2], [1.0, 2.0], [])
    assert curves.chosen([CURVE, nothing, speed], []) == [CURVE]
    assert curves.chosen([nothing, speed], []) == [speed]
    assert curves.chosen([speed], ["tokens_per_second"]) == [speed]

"""Curves in the terminal and as a picture."""

from pathlib import Path

from relayctl.output import curves
from relayctl.output.curves import MetricCurve

CURVE = MetricCurve("train_loss", list(range(1, 41)), [1 / step for step in range(1, 40)] + [float("nan")], [20])


def test_in_the_terminal_with_its_restarts_said() -> None:
    text = curves.plot_in_terminal([CURVE], 60)
    assert "train_loss" in text and "1 restart, marked" in text
    assert "┊" in text and text.splitlines()[-1].split() == ["step", "1", "39"]
    assert max(map(len, text.splitlines())) <= 60


def test_a_point_and_a_flat_line_can_be_drawn() -> None:
    for values in ([2.0], [3.0, 3.0, 3.0]):
        assert (
            curves.plot_in_terminal([MetricCurve("loss", list(range(len(values))), values, [])], None).count("\n") == 17
        )


def test_a_picture(tmp_path: Path) -> None:
    curves.write_png([CURVE, CURVE], tmp_path / "curve.png", "sums")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_drawn_when_nothing_is_named() -> None:
    nothing = MetricCurve("broken", [1], [float("nan")], [])
    speed = MetricCurve("tokens_per_second", [1, 2], [1.0, 2.0], [])
    assert curves.choose_curves([CURVE, nothing, speed], []) == [CURVE]
    assert curves.choose_curves([nothing, speed], []) == [speed]
    assert curves.choose_curves([speed], ["tokens_per_second"]) == [speed]

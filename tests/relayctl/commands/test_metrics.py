"""`relayctl metrics`: the table of curves."""

from relay.v1 import runs_pb2 as pb
from relayctl.commands.metrics import format_metrics_table
from relayctl.output.curves import join_segments
from tests.relayctl.messages import segment


def test_a_run_has_one_curve_with_its_restarts_marked() -> None:
    curves = join_segments(
        [
            segment("loss", 1, [1, 2]),
            segment("loss", 1, [3, 4], superseded=True),
            segment("loss", 2, [3]),
            segment("loss", 2, [4, 5]),
            segment("lr", 1, [1]),
        ]
    )
    assert [(c.name, list(c.steps), list(c.restarts)) for c in curves] == [
        ("loss", [1, 2, 3, 4, 5], [3]),
        ("lr", [1], []),
    ]
    assert format_metrics_table(curves).splitlines() == [
        "METRIC  STEP  LAST  MIN  MAX  POINTS",
        "loss    5     5     1    5    5",
        "lr      1     1     1    1    1",
    ]


def test_a_metric_of_nan_only_is_shown() -> None:
    nan = pb.ReadMetricsResponse(metric="loss", steps=[1], values=[float("nan")])
    assert format_metrics_table(join_segments([nan])).splitlines()[1].split() == ["loss", "1", "nan", "-", "-", "1"]

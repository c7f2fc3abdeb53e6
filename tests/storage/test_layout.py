"""Which folder is whose."""

from dataclasses import replace

import pytest

from storage.base import FolderKey
from storage.layout import Layout, folder_path, kind_path

PLACE = FolderKey(run="r", framework="hf", attempt=3, lease="5f3a", step=100)


@pytest.mark.parametrize(
    ("place", "layout", "path"),
    [
        (PLACE, Layout.RELAY, "r/checkpoints/0003-5f3a/step_00000100"),
        (PLACE, Layout.FRAMEWORK, "r/framework=hf/checkpoints/0003-5f3a/step_00000100"),
        (
            replace(PLACE, node=1, nodes=4),
            Layout.RELAY,
            "r/checkpoints/0003-5f3a/step_00000100/node_0001-of-0004",
        ),
        (replace(PLACE, step=None), Layout.RELAY, "r/output/0003-5f3a"),
        (replace(PLACE, step=None, records="logs"), Layout.FRAMEWORK, "r/framework=hf/logs/0003-5f3a"),
        (replace(PLACE, step=None, records="config"), Layout.FRAMEWORK, "r/framework=hf/config/0003-5f3a"),
    ],
)
def test_d4_paths(place: FolderKey, layout: Layout, path: str) -> None:
    assert folder_path(place, layout) == path
    assert path.startswith(kind_path(place, layout) + "/")


def test_s4_no_two_attempts_share_a_place() -> None:
    """The attempt's number may repeat after a failover; the lease's id does not."""
    assert folder_path(PLACE, Layout.RELAY) != folder_path(replace(PLACE, lease="6a00"), Layout.RELAY)

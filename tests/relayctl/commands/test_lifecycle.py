"""`relayctl cancel`, `pause` and `resume`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.relayctl.deployed import relayctl, run_file

pytestmark = pytest.mark.usefixtures("environment")


def test_pausing_resuming_and_cancelling(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "held", HOLD_AT="7", STEPS="1000000"), "-q")
    relayctl("wait", "held", "--timeout", "300ms", code=12)
    assert json.loads(relayctl("pause", "held", "-o", "json").stdout)["wanted"] == "pause"
    relayctl("resume", "held")
    assert "cancel" in relayctl("cancel", "held", "--reason", "enough").stdout
    assert "held was cancelled by a user: enough" in relayctl("wait", "held", code=11).stdout

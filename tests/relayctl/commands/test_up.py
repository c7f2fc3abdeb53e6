"""`relayctl up` and `demo`: what they answer when they cannot start."""

from __future__ import annotations

import tempfile

from tests.relayctl.deployed import relayctl


def test_up_says_in_words_what_did_not_start() -> None:
    with tempfile.TemporaryDirectory(prefix="relay-up-") as folder:
        said = relayctl("up", "--data-dir", folder, "--listen", "256.0.0.1:99", code=1).stderr
    assert "coordinator ended" in said and "256.0.0.1" in said
    relayctl("up", "--data-dir", "/" + "x" * 90, code=2)
    assert "known: default" in relayctl("up", "--timing", "fast", code=2).stderr
    assert "HOST:PORT" in relayctl("up", "--listen", "nonsense", code=2).stderr
    assert "--folder /proc/none cannot be used" in relayctl("demo", "--folder", "/proc/none", code=1).stderr
    said = relayctl("up", "--data-dir", "/proc/none", code=1).stderr
    assert said == "--data-dir /proc/none cannot be used: No such file or directory; name another folder\n"

"""`relayctl config`, and the coordinator that other commands talk to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.relayctl.deployed import relayctl


def test_a_server_that_is_down_is_one_line() -> None:
    said = relayctl("--coordinator", "127.0.0.1:9", "runs", code=3).stderr
    assert said.count("\n") == 1 and "127.0.0.1:9 (Connection refused)" in said


def test_the_context_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("RELAY_COORDINATOR", "relay.example:7070")
    assert json.loads(relayctl("config", "-o", "json").stdout) == {
        "coordinator": "relay.example:7070",
        "secret": "not set",
        "origin": "RELAY_COORDINATOR",
    }
    monkeypatch.delenv("RELAY_COORDINATOR")
    assert "127.0.0.1:7070" in relayctl("config").stdout
    relayctl("config", "--use", "host:1")
    assert relayctl("config", "-o", "name").stdout == "host:1\n"
    relayctl("config", "--use", "nonsense", code=2)
    assert relayctl("--coordinator", "nonsense", "runs", code=2).stderr.startswith("--coordinator: an address reads")
    (tmp_path / "relay" / "context.json").write_text("[")
    assert "is not a context" in relayctl("config", code=2).stderr

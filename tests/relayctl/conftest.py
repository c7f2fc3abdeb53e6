"""A deployment for the tests of commands, which `relayctl up` brings up and takes down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayctl.local import Host


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the deployment keeps its things; short, for Unix sockets lie in it."""
    return Path(tempfile.mkdtemp(prefix="relay-up-"))


@pytest.fixture(scope="module")
def deployment(folder: Path) -> Iterator[str]:
    """The address of a coordinator with one agent; at the end nothing of it is left."""
    environ = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
    argv = [sys.executable, "-m", "relayctl", "up", "--data-dir", str(folder / "d"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen([*argv, "--timing", "test"], stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(7)]
    context = json.loads((folder / "config" / "relay" / "context.json").read_text())
    assert [line.split()[0] for line in shown] == [
        "coordinator",
        "database",
        "kept",
        "agents",
        "context",
        "next",
        "end",
    ]
    assert context["coordinator"] in shown[0]
    yield context["coordinator"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()
    assert not list(Host("all of it", folder / "d", "").processes())
    shutil.rmtree(folder)


@pytest.fixture
def environment(deployment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands are told of the deployment."""
    monkeypatch.setenv("RELAY_COORDINATOR", deployment)

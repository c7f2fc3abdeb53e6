"""A real deployment, which `relayctl up` brings up and takes down, and the commands against it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from typer.testing import CliRunner, Result

from relayctl.__main__ import app
from relayctl.local.deployment import LocalHost

HERE = Path(__file__).parent


@contextmanager
def up(folder: Path) -> Iterator[str]:
    """The address of a coordinator with one agent; at the end nothing of it is left."""
    environ = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
    argv = [sys.executable, "-m", "relayctl", "up", "--data-dir", str(folder / "d"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen([*argv, "--timing", "test"], stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    try:
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
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
    assert not list(LocalHost("all of it", folder / "d", "").processes())
    shutil.rmtree(folder)


def relayctl(*arguments: str, code: int = 0) -> Result:
    """What a command printed; its exit code must be the expected one."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result


def run_file(folder: Path, name: str, **env: str) -> str:
    """The run file of a trainer that only counts, which lies beside it."""
    shutil.copy(HERE / "stepper.py", folder)
    spec = {
        "version": "relay/v1",
        "name": name,
        "method": "command",
        "command": [sys.executable, "stepper.py"],
        "files": ["stepper.py"],
        "env": {"STEPS": "12", **env},
        "labels": {"kind": "test"},
        "lifecycle": {"max_attempts": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return str(path)

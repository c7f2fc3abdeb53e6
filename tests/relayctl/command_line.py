"""Commands as a person types them, and a run file for them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml
from typer.testing import CliRunner, Result

from relayctl.__main__ import app

HERE = Path(__file__).parent


def relayctl(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result


def run_file(folder: Path, name: str, **env: str) -> str:
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

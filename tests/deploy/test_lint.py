"""What cannot be run here is at least read by those who know: hadolint, shellcheck, docker-compose."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.executable).parent


def findings(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr or f"exit {done.returncode}"


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("Dockerfile.*")))
def test_dockerfile(name: str) -> None:
    assert findings(TOOLS / "hadolint", DEPLOY / name) == ""


@pytest.mark.parametrize("script", [*sorted(DEPLOY.glob("*.sh")), ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shell_script(script: Path) -> None:
    assert findings(TOOLS / "shellcheck", script) == ""
    assert os.access(script, os.X_OK)


def compose(*files: str, **environment: str) -> str:
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose here")
    arguments = [argument for name in files for argument in ("--file", str(DEPLOY / name))]
    return findings("docker-compose", *arguments, "config", "--quiet", **environment)


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids="+".join)
def test_compose_file(files: list[str]) -> None:
    assert compose(*files, POSTGRES_PASSWORD="p", RELAY_SHARED_SECRET="s") == ""


def test_compose_asks_for_its_secrets() -> None:
    assert "choose a secret" in compose("compose.yaml", POSTGRES_PASSWORD="p", RELAY_SHARED_SECRET="")


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("Dockerfile.*")))
def test_images_copy_what_there_is_and_the_ignore_file_lets_through(name: str) -> None:
    allowed = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    lines = [line.split()[1:-1] for line in (DEPLOY / name).read_text().splitlines() if line.startswith("COPY")]
    copied = {source for sources in lines for source in sources}
    assert copied <= allowed
    assert all((ROOT / source).exists() for source in copied)

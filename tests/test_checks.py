"""Style, format and types, as part of every commit's tests. `make check` looks at more."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import Tier

ROOT = Path(__file__).resolve().parents[1]

#: Two thirds of mypy's time go into the training libraries. On a commit their names are `Any`, and mypy does not say
#: what is wrong only because of that; `make check` and the thorough tier follow their imports.
UNFOLLOWED = """
[[tool.mypy.overrides]]
module = ["peft.*", "torch.*", "transformers.*", "trl.*"]
follow_imports = "skip"

[[tool.mypy.overrides]]
module = ["trainers.*", "tests.trainers.*", "benchmarks.*"]
disallow_subclassing_any = false
disallow_untyped_decorators = false
warn_return_any = false
warn_unused_ignores = false
disable_error_code = ["has-type", "valid-type"]
"""


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_finds_nothing(command: str) -> None:
    check("ruff", *command.split(), ".")


@pytest.mark.slow
def test_mypy_finds_nothing(tmp_path: Path, tier: Tier) -> None:
    if tier.thorough:
        check("mypy")
    else:
        settings = (ROOT / "pyproject.toml").read_text().replace("$MYPY_CONFIG_FILE_DIR", str(ROOT))
        (tmp_path / "pyproject.toml").write_text(settings + UNFOLLOWED)
        check("mypy", "--config-file", tmp_path / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache" / "commit")


def check(program: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

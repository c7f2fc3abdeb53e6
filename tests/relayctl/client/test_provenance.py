"""Where a run was submitted from."""

import os
import subprocess
from pathlib import Path

import pytest

from relayctl.client import provenance

WHO = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *arguments: str) -> str:
    environ = {**os.environ, **WHO, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, env=environ)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "run.yaml").write_text("method: command\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


async def test_a_clean_checkout(checkout: Path) -> None:
    found = await provenance.read_provenance(checkout)
    assert (found.commit, found.branch, found.diff) == (git(checkout, "rev-parse", "HEAD"), "main", b"")
    assert "@" in found.submitter and found.client.startswith("relayctl/")


async def test_uncommitted_changes_are_a_patch_that_applies(checkout: Path) -> None:
    (checkout / "run.yaml").write_text("method: sft\n")
    found = await provenance.read_provenance(checkout)
    git(checkout, "checkout", "-q", "run.yaml")
    (checkout / "patch").write_bytes(found.diff)
    git(checkout, "apply", "patch")
    assert (checkout / "run.yaml").read_text() == "method: sft\n"


async def test_a_detached_head_has_no_branch(checkout: Path) -> None:
    git(checkout, "checkout", "-q", "--detach")
    found = await provenance.read_provenance(checkout)
    assert found.commit and not found.branch


async def test_a_diff_too_large_is_left_out(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "MAX_DIFF", 10)
    (checkout / "run.yaml").write_text("method: sft\n")
    assert (await provenance.read_provenance(checkout)).diff == b""


async def test_outside_a_checkout_and_without_git_only_who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (await provenance.read_provenance(tmp_path)).commit == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await provenance.read_provenance(tmp_path)).submitter

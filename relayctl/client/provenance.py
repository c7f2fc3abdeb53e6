"""Where a run comes from: the git commit and uncommitted changes of the run file's folder, and who submitted it."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

MAX_DIFF = 8 << 20  #: bytes; a larger diff is left out
_GIT_TIMEOUT = 10.0  #: seconds for one git command


@dataclass(frozen=True, slots=True)
class Provenance:
    """What lets a user see later which code was trained; a field is empty where it is not known."""

    commit: str = ""
    branch: str = ""
    diff: bytes = b""  #: uncommitted changes of tracked files, as a patch
    submitter: str = ""
    client: str = ""


async def read_provenance(folder: Path) -> Provenance:
    """Read a folder's provenance from git; outside a checkout, return only the submitter and the client."""
    who = Provenance(submitter=_submitter(), client=f"relayctl/{_version()}")
    commit = await _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return who
    branch = await _git(folder, "symbolic-ref", "--short", "--quiet", "HEAD")
    diff = await _git(folder, "diff", "--binary", "--no-color", "--no-ext-diff", "HEAD")
    return Provenance(
        commit.decode().strip(),
        branch.decode(errors="replace").strip(),
        diff if len(diff) <= MAX_DIFF else b"",
        who.submitter,
        who.client,
    )


async def _git(folder: Path, *arguments: str) -> bytes:
    """Return what a git command prints, or nothing when it fails, hangs or git is not installed."""
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return b""
    try:
        async with asyncio.timeout(_GIT_TIMEOUT):
            printed, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return b""
    return printed if process.returncode == 0 else b""


def _submitter() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _version() -> str:
    try:
        return metadata.version("relay-training")
    except metadata.PackageNotFoundError:
        return "unknown"

"""The layout of a run's folder on a host.

    <root>/runs/<run>/
    ├── attempts/<n>-<lease8>/        the bytes of one attempt: `AttemptFolder`
    └── ckpt/step_00000100, ckpt/latest, events.jsonl, state.json, hf/last_synced.json

The second group is for you and your scripts: links and copies, replaced atomically, never read back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_STEP = re.compile(r"step_(\d{8,})")
_TEMPORARY = ".tmp-relay-"  #: begins the names of what is being written here; nobody else's do


def checked_name(name: str) -> str:
    """Return `name`; raise ValueError when it could lead out of a folder (R7)."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: lower-case letters, digits, '.', '_' and '-', at most 128")
    return name


def step_name(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step_{step:08d}"


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """Where one attempt's trainer, shim and agent read and write. `path` lies under `attempts/`."""

    path: Path

    @property
    def staging(self) -> Path:
        return self.path / "staging"

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def work(self) -> Path:
        """The trainer's working folder, with the inputs that were uploaded with the run."""
        return self.path / "work"

    @property
    def resume(self) -> Path:
        """The folder for a checkpoint that was downloaded."""
        return self.path / "resume"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def agent_log(self) -> Path:
        return self.path / "agent.jsonl"

    @property
    def stdout(self) -> Path:
        return self.path / "stdout.log"

    @property
    def stderr(self) -> Path:
        return self.path / "stderr.log"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @property
    def shim(self) -> Path:
        return self.path / "shim.json"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def assignment(self) -> Path:
        """The lease's assignment, for a restarted agent."""
        return self.path / "assignment.bin"

    @property
    def merged(self) -> Path:
        """The result's adapter merged into its base model, where that is to be published."""
        return self.path / "merged"

    @property
    def start_request(self) -> Path:
        """The request that said where the attempt resumes from; a restarted agent repeats it."""
        return self.path / "start.bin"

    @property
    def offered(self) -> Path:
        """The file of steps that the registry may know, one a line; the coordinator decides whether these are kept."""
        return self.path / "offered"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / step_name(step)

    def offer(self, step: int) -> None:
        """Note a step, before the registry can know it."""
        with self.offered.open("a") as file:
            file.write(f"{step}\n")
            file.flush()
            os.fsync(file.fileno())

    def discard(self, step: int) -> None:
        """Remove a sealed checkpoint. Harmless when it is gone."""
        with contextlib.suppress(FileNotFoundError):
            _discard(self.checkpoint(step))

    def discard_unregistered(self, needed: set[int]) -> None:
        """Remove sealed checkpoints that were never offered to the registry, but for those `needed`."""
        if not self.offered.exists():  # begun by an agent that kept no such note
            return
        lines = self.offered.read_text().splitlines()
        for step in set(self.steps()) - needed - {int(line) for line in lines if line.isdecimal()}:
            _discard(self.checkpoint(step))

    def create(self) -> None:
        """Make the folders that do not exist."""
        for folder in (self.staging, self.checkpoints, self.output, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.offered.touch()

    def steps(self) -> list[int]:
        """Return the steps of the sealed checkpoints in this folder, in order."""
        names = os.listdir(self.checkpoints) if self.checkpoints.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))

    @property
    def number(self) -> int:
        return int(self.path.name.partition("-")[0])

    def retire(self) -> None:
        """Remove what only the trainer needed, and what an agent that died was writing: the attempt is over."""
        for folder in (self.work, self.staging, self.resume, self.merged):
            shutil.rmtree(folder, ignore_errors=True)
        remove_temporaries(self.checkpoints)


class RunFolder:
    """One run on this host. Blocking: call it in a thread."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.path = root / "runs" / checked_name(run_id)

    def attempt(self, number: int, lease: str) -> AttemptFolder:
        """The folder of an attempt; `lease` is the lease's own id, whose first eight characters tell twins apart."""
        return AttemptFolder(self.path / "attempts" / f"{int(number)}-{checked_name(lease)[:8]}")

    def attempts(self) -> list[AttemptFolder]:
        """Return the attempts in this folder, by number."""
        folder = self.path / "attempts"
        names = [name for name in (os.listdir(folder) if folder.is_dir() else []) if re.fullmatch(r"\d+-.+", name)]
        return [AttemptFolder(folder / name) for name in sorted(names, key=lambda name: int(name.split("-")[0]))]

    def retain(self, attempt: AttemptFolder, needed: set[int]) -> None:
        """Delete what was never registered and nobody needs; update the links that users read."""
        attempt.discard_unregistered(needed)
        self.show(attempt)

    def discard(self, attempt: AttemptFolder, step: int) -> None:
        """Remove a sealed checkpoint, and the link to it. Harmless when it is gone."""
        attempt.discard(step)
        link = self.path / "ckpt" / step_name(step)
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)

    def show(self, attempt: AttemptFolder, status: str = "running") -> None:
        """Update the links and `state.json` that users read to those of an attempt (row A6)."""
        shown = self.path / "ckpt"
        shown.mkdir(parents=True, exist_ok=True)
        steps = attempt.steps()
        for step in steps:
            _link(shown / step_name(step), attempt.checkpoint(step))
        if steps:
            _link(shown / "latest", attempt.checkpoint(steps[-1]))
        for link in shown.iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()
        _link(self.path / "events.jsonl", attempt.events)
        latest = step_name(steps[-1]) if steps else None
        state = {"status": status, "attempt": attempt.path.name, "latest_ckpt": latest and f"ckpt/{latest}"}
        write_atomically(self.path / "state.json", json.dumps(state, indent=2).encode() + b"\n")

    def write_sync_state(self, facts: Mapping[str, Any]) -> None:
        """Write what was last published on the Hugging Face Hub (row A6)."""
        (self.path / "hf").mkdir(exist_ok=True)
        write_atomically(self.path / "hf" / "last_synced.json", json.dumps(facts, indent=2).encode() + b"\n")

    def clean(self) -> None:
        """Remove what an agent that died was writing for users."""
        for folder in (self.path, self.path / "ckpt", self.path / "hf"):
            remove_temporaries(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole and synced to the disk; raise OSError and leave what was there when that fails."""
    with _temporary(path) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def _link(link: Path, target: Path) -> None:
    """Make `link` a relative link to `target`, replacing one that is there in a single step."""
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == relative:
        return
    with _temporary(link) as temporary:
        temporary.symlink_to(relative)
        temporary.replace(link)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _discard(folder: Path) -> None:
    """Remove a checkpoint: its name goes at once, so that it is never seen in part."""
    doomed = folder.with_name(f"{_TEMPORARY}{os.getpid()}-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean_checkpoints(root: Path) -> None:
    """Remove what an agent that died was removing from any attempt."""
    for folder in root.glob("runs/*/attempts/*/ckpt"):
        remove_temporaries(folder)


def remove_temporaries(folder: Path) -> None:
    """Remove what a process that died was writing in this folder with this module."""
    for path in folder.glob(f"{_TEMPORARY}*") if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

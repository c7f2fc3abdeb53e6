"""From what a trainer staged to a checkpoint: when it is complete, and how it is sealed.

A staged folder is complete when an event line names it, or by a rule: it was renamed into place, it holds a marker
file, or nothing in it has changed for a while. Sealing is hash → manifest.json → check that nothing changed → fsync →
rename: a checkpoint is in `ckpt/` whole or not at all, whatever dies when. Sealing again finishes or repeats what was
begun. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agent.events.reports import SavedCheckpoint
from agent.folder import remove_temporaries, write_atomically
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, check_path, describe_folder, list_files

_TRAILING = re.compile(r"(\d+)\D*$")  #: `global_step_120`, `checkpoint-120`, `model_120.pt`
_SEALING = ".sealing-"
_Fingerprint = tuple[tuple[str, int, int, int], ...]  #: path, inode, size, modification time of each file


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRule:
    """When a match of `pattern` is complete; with neither `marker` nor `still_for`, as soon as it has that name."""

    pattern: str = "step_*"
    marker: str | None = None  #: name of a file inside it that is written last
    still_for: float | None = None  #: seconds without a change


@dataclass(frozen=True, slots=True)
class Observation:
    """What a staged folder or file looked like, and since when."""

    fingerprint: _Fingerprint
    since: float


def is_complete(rule: CompletionRule, seen: Observation, names: Iterable[str], now: float, *, final: bool) -> bool:
    """Return whether a staged folder or file is complete. Pure. `final`: its trainer has ended."""
    if rule.marker is not None:
        return rule.marker in names
    if rule.still_for is not None:
        return bool(seen.fingerprint) and (final or now - seen.since >= rule.still_for)
    return True


def parse_step(name: str, pattern: str) -> int | None:
    """Return the trailing number of a name that matches; None for temporaries and names without a number."""
    if name.startswith(".") or name.endswith(".tmp") or not fnmatch.fnmatchcase(name, pattern):
        return None
    match = _TRAILING.search(name)
    return int(match[1]) if match else None


@dataclass(slots=True)
class StagingScanner:
    """Looks for staged checkpoints under `root`, and finds each once. Paths inside `staging` are relative to it."""

    root: Path
    staging: Path
    rule: CompletionRule
    now: Callable[[], float]
    _seen: dict[str, Observation] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Restore the name of what an agent that died had begun to wrap."""
        for folder in self.root.glob(f"{_SEALING}*"):
            file = folder / folder.name.removeprefix(_SEALING)
            if file.is_file():
                file.rename(self.root / file.name)
            shutil.rmtree(folder)

    def ignore(self, paths: Iterable[str]) -> None:
        """Leave out these paths, which an event line has named, from what `scan` finds."""
        self._taken.update(paths)

    def scan(self, *, final: bool = False) -> list[SavedCheckpoint]:
        """Return what became complete since the last call, by step. `final` when the trainer has ended."""
        found = []
        for path in sorted(self.root.glob(self.rule.pattern)):
            step, shown = parse_step(path.name, Path(self.rule.pattern).name), self._name(path)
            if step is not None and shown not in self._taken and self._is_complete(path, shown, final):
                self._taken.add(shown)
                found.append(SavedCheckpoint(step, shown, source="agent"))
        return sorted(found, key=lambda saved: saved.step)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.staging) if path.is_relative_to(self.staging) else path)

    def _is_complete(self, path: Path, shown: str, final: bool) -> bool:
        try:
            fingerprint = _fingerprint(path)
        except OSError:  # it changes while it is looked at
            return False
        except ManifestError:  # nothing that is taken: sealing says so, once its name says that it is whole
            return self.rule.marker is None and self.rule.still_for is None
        now, before = self.now(), self._seen.get(shown)
        if before is None or before.fingerprint != fingerprint:
            self._seen[shown] = before = Observation(fingerprint, now)
        return is_complete(self.rule, before, (name for name, *_ in fingerprint), now, final=final)


def seal_checkpoint(staged: Path, target: Path, *, step: int, metrics: dict[str, float] | None = None) -> Manifest:
    """Make a staged folder (or single file) the checkpoint `target`, and return its manifest.

    Raises ManifestError when it holds what is not allowed (links, devices; R7), changed while it was hashed, or differs
    from what `target` holds already; OSError when the disk fails. Nothing is at `target` then.
    """
    if staged.is_symlink():
        raise ManifestError(f"{staged.name} is a link")
    if not staged.exists():
        return _load_sealed(staged, target)
    if staged.is_file():
        staged = _wrap(staged)
    remove_temporaries(staged)
    before = _fingerprint(staged)
    if not before:
        raise ManifestError(f"{staged.name} holds no files")
    manifest = describe_folder(staged, step=step, metrics=metrics)
    if target.exists():
        return _check_unchanged(target, manifest)
    write_atomically(staged / MANIFEST_FILE, manifest.to_bytes())
    _sync(staged)
    if _fingerprint(staged) != before:
        raise ManifestError(f"{staged.name} changed while it was being read: its writer had not finished")
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(target)
    _sync_path(target.parent)
    _sync_path(staged.parent)
    return manifest


def resolve_inside(staging: Path, path: str) -> Path:
    """Return the path that a trainer's line names; raise ManifestError when it leads out of the staging folder (R7)."""
    check_path(path)
    place = staging / path
    if not place.resolve().is_relative_to(staging.resolve()):
        raise ManifestError(f"{path!r} leads out of the staging folder")
    return place


def _load_sealed(staged: Path, target: Path) -> Manifest:
    """Return the manifest of a checkpoint that was renamed into place by an agent that died afterwards."""
    try:
        return Manifest.from_bytes((target / MANIFEST_FILE).read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{staged.name} is not there") from None


def _check_unchanged(target: Path, manifest: Manifest) -> Manifest:
    kept = Manifest.from_bytes((target / MANIFEST_FILE).read_bytes())
    if kept.files != manifest.files:
        raise ManifestError(f"{target.name} was written before, with other contents; a checkpoint never changes")
    return kept


def _wrap(file: Path) -> Path:
    """Move a checkpoint that is a single file into a folder of its own."""
    folder = file.with_name(_SEALING + file.name)
    folder.mkdir(exist_ok=True)
    file.rename(folder / file.name)
    return folder


def _fingerprint(staged: Path) -> _Fingerprint:
    """Return what shows whether anything changed; raise ManifestError for links and devices."""
    files = list_files(staged) if staged.is_dir() else [staged]
    shown = []
    for path in files:
        status = path.lstat()
        if status.st_nlink > 1:
            raise ManifestError(f"{path.name} is a hard link: whoever holds the other name could change it")
        name = path.relative_to(staged).as_posix() if path != staged else path.name
        shown.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(shown)


def _sync(folder: Path) -> None:
    """Fsync every file and folder below, the folder itself last."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_path(Path(parent, name))
        _sync_path(Path(parent))


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The checkpoints that a training without Relay left in a folder: which are whole, and which files they have.

Two layouts are known: `step_*` folders, in the folder or in its `ckpt`, of programs that keep the trainer's contract;
and `checkpoint-*` folders of the Hugging Face Trainer. Blocking: call it in a thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage import manifest
from storage.manifest import ManifestError, check_path

_LAYOUTS = (("ckpt", "step_"), ("", "step_"), ("", "checkpoint-"))
_LOOKED_FOR = "ckpt/step_*, step_* or checkpoint-*"
_TRAINER_STATE, _OURS = "trainer_state.json", "relay_state.json"
_LEFT_OUT = ("training_args.bin", manifest.MANIFEST_FILE)  #: a pickle; what a host that fetches it writes itself
_WEIGHTS = re.compile(r"(.*/)?([^/]*\.safetensors|pytorch_model[^/]*\.bin|adapter_model\.[^/]*|[^/]*\.distcp)")
_STEP = re.compile(r"\d{1,18}")


class NotImportable(ValueError):
    """A folder that no run can be made of; the message says why, and which file is in the way."""


class _Incomplete(Exception):
    """A checkpoint that is not whole; the message says why."""


@dataclass(frozen=True, slots=True)
class ExternalCheckpoint:
    """A whole checkpoint that was saved without Relay."""

    step: int
    folder: Path
    files: Mapping[str, Path]  #: by the path below it
    size: int  #: bytes of those files
    time: float  #: when it was saved, in seconds since the epoch
    log_history: Sequence[Mapping[str, Any]] | None = None  #: None unless the Hugging Face Trainer saved it
    total_steps: int | None = None  #: the last step that the training was to reach
    added: Mapping[str, bytes] = field(default_factory=dict)  #: files that a trainer needs to resume, by path

    @property
    def total_size(self) -> int:
        """Bytes of its files and of those that are added."""
        return self.size + sum(map(len, self.added.values()))


@dataclass(frozen=True, slots=True)
class ExternalTraining:
    """The whole checkpoints in a folder, in the order of their steps, and what was skipped, each with the reason."""

    root: Path
    checkpoints: Sequence[ExternalCheckpoint]
    skipped: Sequence[tuple[str, str]]

    @property
    def head(self) -> ExternalCheckpoint:
        """The newest checkpoint."""
        return self.checkpoints[-1]


def find_checkpoints(root: Path, last: int | None = None) -> ExternalTraining:
    """Find the whole checkpoints in a folder, or the `last` of them; raises NotImportable when there is none."""
    parent, prefix = _find_layout(root)
    found: dict[int, ExternalCheckpoint] = {}
    skipped: list[tuple[str, str]] = []
    for folder in sorted(parent.glob(f"{prefix}*"), key=_make_sort_key):
        try:
            checkpoint = _read(folder, folder.name.removeprefix(prefix), root)
            if checkpoint.step in found:
                raise _Incomplete(f"{found[checkpoint.step].folder.name} is of the same step")
            found[checkpoint.step] = checkpoint
        except _Incomplete as why:
            skipped.append((folder.name, str(why)))
    if not found:
        raise NotImportable(f"{parent}: no checkpoint is whole; " + "; ".join(f"{n}: {why}" for n, why in skipped))
    return ExternalTraining(root, [found[step] for step in sorted(found)][-last if last else 0 :], skipped)


def _find_layout(root: Path) -> tuple[Path, str]:
    """Return the folder that has the checkpoints' folders, and the prefix of their names."""
    for below, prefix in _LAYOUTS:
        if any((root / below).glob(f"{prefix}*")):
            require_inside(root / below, root)
            return root / below, prefix
    raise NotImportable(f"{root}: no checkpoints are there; looked for {_LOOKED_FOR}")


def _make_sort_key(folder: Path) -> tuple[int, str]:
    digits = re.search(r"\d{1,18}$", folder.name)
    return int(digits.group()) if digits else -1, folder.name


def require_inside(path: Path, root: Path) -> None:
    """Raise NotImportable for a link that leads out of `root`, or nowhere."""
    if not path.exists():
        raise NotImportable(f"{path}: a link that leads nowhere")
    if not (real := path.resolve()).is_relative_to(root.resolve()):
        raise NotImportable(f"{path}: it leads to {real}, and links are followed inside {root} only")


def _read(folder: Path, number: str, root: Path) -> ExternalCheckpoint:
    if not _STEP.fullmatch(number):
        raise _Incomplete("no number of a step is in its name")
    require_inside(folder, root)
    if not folder.is_dir():
        raise _Incomplete("it is not a folder")
    step = int(number)
    every = dict(_list_files(folder, "", root, ()))
    files = {path: file for path, file in every.items() if path not in _LEFT_OUT}
    if not files:
        raise _Incomplete("it is empty")
    state = _read_trainer_state(every)
    if folder.name.startswith("checkpoint-"):
        _require_trainer_files(files, state, step)
    _require_listed_files(every)
    stats = {path: file.stat() for path, file in files.items()}
    sizes = {path: stat.st_size for path, stat in stats.items()}
    return ExternalCheckpoint(
        step=step,
        folder=folder,
        files=files,
        size=sum(sizes.values()),
        time=max(stat.st_mtime for stat in stats.values()),
        log_history=None if state is None else state["log_history"],
        total_steps=_count((state or {}).get("max_steps")),
        added={} if state is None or _OURS in files else {_OURS: _make_state(step, sizes)},
    )


def _list_files(folder: Path, prefix: str, root: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Yield every file below a folder with its path; links are followed as long as they lead inside `root`."""
    real = folder.resolve()
    if real in above:
        raise NotImportable(f"{folder}: links that lead in a circle")
    for entry in sorted(folder.iterdir()):
        path = prefix + entry.name
        if entry.is_symlink():
            require_inside(entry, root)
        if entry.is_dir():
            yield from _list_files(entry, f"{path}/", root, (*above, real))
        elif entry.is_file():
            try:
                check_path(path)
            except ManifestError as wrong:
                raise NotImportable(f"{entry}: {wrong}") from wrong
            yield path, entry
        else:
            raise NotImportable(f"{entry}: only plain files and folders are taken, no devices or sockets")


def _require_trainer_files(files: Mapping[str, Path], state: Mapping[str, Any] | None, step: int) -> None:
    """Check that the files of the Hugging Face Trainer are there; it writes its own state last."""
    if state is None:
        raise _Incomplete(f"{_TRAINER_STATE} is missing or cannot be read")
    if state["global_step"] != step:
        raise _Incomplete(f"{_TRAINER_STATE} is of step {state['global_step']}")
    if not any(_WEIGHTS.fullmatch(path) for path in files):
        raise _Incomplete("no weights are in it (*.safetensors, pytorch_model*.bin, adapter_model.*)")


def _require_listed_files(files: Mapping[str, Path]) -> None:
    """Check that the files in its lists (Relay's, and the library's index of shards) are there, of the listed size."""
    named: dict[str, int | None] = {}
    for path, file in files.items():
        if path.endswith(".index.json"):
            shards = _read_json(file).get("weight_map")
            named |= dict.fromkeys(map(str, shards.values()) if isinstance(shards, dict) else ())
    ours = _read_json(files[_OURS]).get("files") if _OURS in files else None
    named |= ours if isinstance(ours, dict) else {}
    if manifest.MANIFEST_FILE in files:
        try:
            whole = manifest.Manifest.from_bytes(files[manifest.MANIFEST_FILE].read_bytes())
        except ManifestError as wrong:
            raise NotImportable(
                f"{files[manifest.MANIFEST_FILE]}: Relay keeps its own list of files under this name; rename it"
            ) from wrong
        named |= {file.path: file.size for file in whole.files}
    for path, size in named.items():
        if path not in files:
            raise _Incomplete(f"{path} is missing")
        if size is not None and (there := files[path].stat().st_size) != size:
            raise _Incomplete(f"{path} has {there} bytes instead of {size}")


def _read_trainer_state(files: Mapping[str, Path]) -> Mapping[str, Any] | None:
    """Return the state of the Hugging Face Trainer, or None when there is none that can be read."""
    state = _read_json(files[_TRAINER_STATE]) if _TRAINER_STATE in files else {}
    history = state.get("log_history")
    readable = _count(state.get("global_step")) is not None and isinstance(history, list)
    return state if readable and all(isinstance(each, dict) for each in history or ()) else None


def _read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one when it holds no object."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else None


def _make_state(step: int, sizes: Mapping[str, int]) -> bytes:
    """Make the file that Relay's trainers need to resume, which lists all others. World and identity are not known."""
    state = {"format": 1, "step": step, "world": None, "identity": None, "files": dict(sorted(sizes.items()))}
    return json.dumps(state, indent=2).encode() + b"\n"


def read_status(root: Path) -> Mapping[str, str]:
    """Return `status` and `latest_ckpt` of the folder's `state.json`, as far as they are there."""
    file = root / "state.json"
    state = _read_json(file) if file.is_file() and file.resolve().is_relative_to(root.resolve()) else {}
    return {name: str(state[name]) for name in ("status", "latest_ckpt") if state.get(name)}

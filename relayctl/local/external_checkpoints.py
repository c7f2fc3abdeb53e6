"""Checkpoints that a training without Relay left in a folder: which there are, which are whole, and their files.

Two layouts are known: `step_*` folders, in the folder or in its `ckpt`, of the commander's workers and of all that keep
the contract; and `checkpoint-*` folders of the Hugging Face Trainer. Blocking: call it in a thread.
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


class NotImportable(Exception):
    """A folder that no run can be made of; says what is in the way and where."""


class _Half(Exception):
    """Why a checkpoint is not whole."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A whole checkpoint. `logged` is the Hugging Face Trainer's `log_history`, None when another program saved it."""

    step: int
    folder: Path
    files: Mapping[str, Path]  #: by the path below it
    size: int
    time: float  #: when it was saved, epoch seconds
    logged: Sequence[Mapping[str, Any]] | None = None
    total: int | None = None  #: steps that it was to do in all
    added: Mapping[str, bytes] = field(default_factory=dict)  #: what it lacks to be resumed from

    @property
    def weight(self) -> int:
        """Bytes, with what is added."""
        return self.size + sum(map(len, self.added.values()))


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: whole checkpoints by step, and what was passed over, each with why."""

    root: Path
    checkpoints: Sequence[Foreign]
    passed_over: Sequence[tuple[str, str]]

    @property
    def head(self) -> Foreign:
        return self.checkpoints[-1]


def look(root: Path, last: int | None = None) -> Found:
    """What is in a folder; of the whole checkpoints the `last`. NotImportable when there is none."""
    place, prefix = _place(root)
    found: dict[int, Foreign] = {}
    passed_over: list[tuple[str, str]] = []
    for folder in sorted(place.glob(f"{prefix}*"), key=_order):
        try:
            checkpoint = _read(folder, folder.name.removeprefix(prefix), root)
            if checkpoint.step in found:
                raise _Half(f"{found[checkpoint.step].folder.name} is of the same step")
            found[checkpoint.step] = checkpoint
        except _Half as why:
            passed_over.append((folder.name, str(why)))
    if not found:
        raise NotImportable(f"{place}: no checkpoint is whole; " + "; ".join(f"{n}: {why}" for n, why in passed_over))
    return Found(root, [found[step] for step in sorted(found)][-last if last else 0 :], passed_over)


def _place(root: Path) -> tuple[Path, str]:
    for below, prefix in _LAYOUTS:
        if any((root / below).glob(f"{prefix}*")):
            require_inside(root / below, root)
            return root / below, prefix
    raise NotImportable(f"{root}: no checkpoints are there; looked for {_LOOKED_FOR}")


def _order(folder: Path) -> tuple[int, str]:
    digits = re.search(r"\d{1,18}$", folder.name)
    return int(digits.group()) if digits else -1, folder.name


def require_inside(path: Path, root: Path) -> None:
    """NotImportable for a link that leads out of `root`, or nowhere."""
    if not path.exists():
        raise NotImportable(f"{path}: a link that leads nowhere")
    if not (real := path.resolve()).is_relative_to(root.resolve()):
        raise NotImportable(f"{path}: it leads to {real}, and links are followed inside {root} only")


def _read(folder: Path, number: str, root: Path) -> Foreign:
    if not _STEP.fullmatch(number):
        raise _Half("no number of a step is in its name")
    require_inside(folder, root)
    if not folder.is_dir():
        raise _Half("it is not a folder")
    step = int(number)
    every = dict(_files(folder, "", root, ()))
    files = {path: file for path, file in every.items() if path not in _LEFT_OUT}
    if not files:
        raise _Half("it is empty")
    state = _state(every)
    if folder.name.startswith("checkpoint-"):
        _require_trainers(files, state, step)
    _require_listed(every)
    stats = {path: file.stat() for path, file in files.items()}
    sizes = {path: stat.st_size for path, stat in stats.items()}
    return Foreign(
        step=step,
        folder=folder,
        files=files,
        size=sum(sizes.values()),
        time=max(stat.st_mtime for stat in stats.values()),
        logged=None if state is None else state["log_history"],
        total=_count((state or {}).get("max_steps")),
        added={} if state is None or _OURS in files else {_OURS: _sealed(step, sizes)},
    )


def _files(folder: Path, prefix: str, root: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Every file below a folder by its path; links are followed inside `root`."""
    real = folder.resolve()
    if real in above:
        raise NotImportable(f"{folder}: links that lead in a circle")
    for entry in sorted(folder.iterdir()):
        path = prefix + entry.name
        if entry.is_symlink():
            require_inside(entry, root)
        if entry.is_dir():
            yield from _files(entry, f"{path}/", root, (*above, real))
        elif entry.is_file():
            try:
                check_path(path)
            except ManifestError as wrong:
                raise NotImportable(f"{entry}: {wrong}") from wrong
            yield path, entry
        else:
            raise NotImportable(f"{entry}: only plain files and folders are taken, no devices or sockets")


def _require_trainers(files: Mapping[str, Path], state: Mapping[str, Any] | None, step: int) -> None:
    """What the Hugging Face Trainer saves is there; its own state it writes last."""
    if state is None:
        raise _Half(f"{_TRAINER_STATE} is missing or cannot be read")
    if state["global_step"] != step:
        raise _Half(f"{_TRAINER_STATE} is of step {state['global_step']}")
    if not any(_WEIGHTS.fullmatch(path) for path in files):
        raise _Half("no weights are in it (*.safetensors, pytorch_model*.bin, adapter_model.*)")


def _require_listed(files: Mapping[str, Path]) -> None:
    """What its own lists name (Relay's, and the library's index of shards) is there, in full where that is said."""
    named: dict[str, int | None] = {}
    for path, file in files.items():
        if path.endswith(".index.json"):
            shards = _json(file, {}).get("weight_map")
            named |= dict.fromkeys(map(str, shards.values()) if isinstance(shards, dict) else ())
    ours = _json(files[_OURS], {}).get("files") if _OURS in files else None
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
            raise _Half(f"{path} is missing")
        if size is not None and (there := files[path].stat().st_size) != size:
            raise _Half(f"{path} has {there} bytes instead of {size}")


def _state(files: Mapping[str, Path]) -> Mapping[str, Any] | None:
    """The Hugging Face Trainer's own; None when there is none that can be read."""
    state = _json(files[_TRAINER_STATE], {}) if _TRAINER_STATE in files else {}
    history = state.get("log_history")
    readable = _count(state.get("global_step")) is not None and isinstance(history, list)
    return state if readable and all(isinstance(each, dict) for each in history or ()) else None


def _json(file: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The object in a file; `otherwise` when it holds none."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return otherwise
    return found if isinstance(found, dict) else otherwise


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else None


def _sealed(step: int, sizes: Mapping[str, int]) -> bytes:
    """What Relay's own trainers ask of a checkpoint: all that is in it. World and identity are not known."""
    state = {"format": 1, "step": step, "world": None, "identity": None, "files": dict(sorted(sizes.items()))}
    return json.dumps(state, indent=2).encode() + b"\n"


def status_of(root: Path) -> Mapping[str, str]:
    """What the commander's worker wrote of a run: `status` and `latest_ckpt`, where they are there."""
    file = root / "state.json"
    said = _json(file, {}) if file.is_file() and file.resolve().is_relative_to(root.resolve()) else {}
    return {name: str(said[name]) for name in ("status", "latest_ckpt") if said.get(name)}

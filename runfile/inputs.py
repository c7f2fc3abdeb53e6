"""What a run needs from the submitter's disk, and under which relative path the host will find it.

Data files and globs, `files:` and a local model folder travel. What lies in the run file's folder keeps its relative
path; what lies outside becomes `external/<n>/<name>` and the run file is rewritten to say so. A path with a scheme
(`hf://…`) stays.
"""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runfile.mistakes import KeyPath, Mistake, find_nearest

EXTERNAL = "external"
INIT_FROM = "init_from"  #: where a host finds the files that `model.init_from` names; the coordinator adds them
INIT_BASE = f"{INIT_FROM}/base"  #: and the base model that they adapt, where the Hub does not have it
ROW_SUFFIXES = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".feather",
)  #: what files of rows end in
_SKIPPED = {".git", "__pycache__", ".DS_Store"}
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file that travels: where it is here, and where it will be in the run's working folder (POSIX, relative)."""

    source: Path
    path: str


@dataclass(frozen=True, slots=True)
class LocalReference:
    """A place in a run file that names something on the submitter's disk."""

    path: KeyPath
    text: str
    kind: Literal["data", "files", "model"]


@dataclass(frozen=True, slots=True)
class ResolvedReference:
    """What a reference stands for: its files relative to `root`, and how the rest of the reference reads from there."""

    root: Path
    rest: str
    files: tuple[str, ...]


def list_references(data: Mapping[str, Any]) -> Iterator[LocalReference]:
    """Every local reference of a run file, as written or resolved; what is malformed is passed over."""
    rows = data.get("data")
    if isinstance(rows, Mapping):
        yield from _rows(("data", "train"), rows.get("train"))
        if not (isinstance(rows.get("eval"), Mapping) and "path" not in rows["eval"]):
            yield from _rows(("data", "eval"), rows.get("eval"))
    files = data.get("files")
    for index, text in enumerate(files if isinstance(files, list) else ()):
        if isinstance(text, str) and text:
            yield LocalReference(("files", index), text, "files")
    for key in ("model", "teacher"):
        model = data.get(key)
        name = model.get("name_or_path") if isinstance(model, Mapping) else None
        if isinstance(name, str) and _is_folder_name(name):
            yield LocalReference((key, "name_or_path"), name, "model")
    rewards = data.get("rewards")
    for index, reward in enumerate(rewards if isinstance(rewards, list) else ()):
        name = reward.get("model") if isinstance(reward, Mapping) else None
        if isinstance(name, str) and _is_folder_name(name):
            yield LocalReference(("rewards", index, "model"), name, "model")


def _rows(path: KeyPath, value: Any) -> Iterator[LocalReference]:
    entries = (
        [((*path, index), entry) for index, entry in enumerate(value)] if isinstance(value, list) else [(path, value)]
    )
    for place, entry in entries:
        at, text = ((*place, "path"), entry.get("path")) if isinstance(entry, Mapping) else (place, entry)
        if isinstance(text, str) and text and "://" not in text:
            yield LocalReference(at, text, "data")


def _is_folder_name(name: str) -> bool:
    """A model's name is a Hub id unless it begins like a path; an absolute path not found here is the host's."""
    if name.startswith(("./", "../", "~/")) or name in (".", ".."):
        return True
    return name.startswith("/") and os.path.isdir(name)


def find_missing(data: Mapping[str, Any], base: Path) -> Iterator[Mistake]:
    """What the run file names and the disk does not have."""
    for reference in list_references(data):
        problem = _look(reference, base)
        if isinstance(problem, Mistake):
            yield problem


def _look(reference: LocalReference, base: Path) -> ResolvedReference | Mistake:
    text = os.path.expanduser(reference.text)
    whole = base / text
    if not whole.exists() and _MAGIC & set(text):
        return _look_glob(reference, base, text)
    if whole.is_dir() and reference.kind != "data":
        return _look_folder(reference, whole)
    if whole.is_dir() and (rows := list_row_files(whole)):
        return ResolvedReference(whole, ".", tuple(rows))
    if whole.is_file() and reference.kind != "model":
        if reference.kind == "data" and not whole.stat().st_size:
            return Mistake(reference.path, f'"{reference.text}" is empty', "each line of it is a row")
        return ResolvedReference(whole.parent, whole.name, (whole.name,))
    return Mistake(reference.path, *_absent(reference, whole))


def list_row_files(folder: Path) -> list[str]:
    """The files of rows below a folder that is named as data, relative to it, in order. By their names: what they are,
    whoever reads them finds out.
    """
    found: list[str] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        plain = {name: name.lower().removesuffix(".gz").removesuffix(".zst") for name in names}
        rows = sorted(name for name in names if plain[name].endswith(ROW_SUFFIXES) and not name.startswith("."))
        found += [os.path.relpath(os.path.join(here, name), folder) for name in rows]
    return found


def _absent(reference: LocalReference, whole: Path) -> tuple[str, str]:
    if whole.is_dir():
        return (
            f'"{reference.text}" holds no file of rows',
            f"these end in {', '.join(ROW_SUFFIXES)} (or .gz, .zst after that)",
        )
    if whole.is_file():
        return f'"{reference.text}" is a file', "a model is a folder or a name on the Hub"
    if whole.exists() or whole.is_symlink():
        return f'"{reference.text}" is not a file that can be read', ""
    hub = reference.kind == "data" and reference.text.count("/") == 1 and not Path(reference.text).suffix
    hint = f"a data set on the Hub is written hf://{reference.text}" if hub else _neighbour(whole)
    return f'there is no {"folder" if reference.kind == "model" else "file"} "{reference.text}"', hint


def _neighbour(whole: Path) -> str:
    if not whole.parent.is_dir():
        return f"the folder {whole.parent} does not exist"
    close = find_nearest(whole.name, sorted(entry.name for entry in whole.parent.iterdir()))
    return f"did you mean {close}?" if close else f"looked in {whole.parent.absolute()}"


def _look_glob(reference: LocalReference, base: Path, text: str) -> ResolvedReference | Mistake:
    parts = Path(text).parts
    fixed = next(index for index, part in enumerate(parts) if _MAGIC & set(part))
    root, rest = base / Path(*parts[:fixed]), str(Path(*parts[fixed:]))
    hits = sorted(hit for hit in glob.glob(rest, root_dir=root, recursive=True) if (root / hit).is_file())
    if not hits:
        return Mistake(reference.path, f'no file matches "{reference.text}"', f"looked in {root.absolute()}")
    return ResolvedReference(root, rest, tuple(hits))


def _look_folder(reference: LocalReference, folder: Path) -> ResolvedReference | Mistake:
    files: list[str] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in (name for name in folders if os.path.islink(os.path.join(here, name))):
            return Mistake(
                reference.path, f'"{os.path.join(here, name)}" is a link to a folder', "name the folder itself"
            )
        files += [os.path.relpath(os.path.join(here, name), folder) for name in sorted(names) if name not in _SKIPPED]
    if not files:
        return Mistake(reference.path, f'the folder "{reference.text}" is empty')
    return ResolvedReference(folder, ".", tuple(files))


def gather_inputs(data: dict[str, Any], base: Path) -> tuple[dict[str, Any], list[InputFile], list[Mistake]]:
    """The resolved run file `data` rewritten for the host, what travels (each file once), and what is not there."""
    root = Path(os.path.abspath(base))
    places, travels, mistakes = _Places(root, data), dict[str, Path](), list[Mistake]()
    for reference in list_references(data):
        look = _look(reference, root)
        if isinstance(look, Mistake):
            mistakes.append(look)
            continue
        folder = places.of(look)
        for name in look.files:
            travels[_joined(folder, name)] = look.root / name
        text = _joined(folder, look.rest)
        if reference.kind == "model":
            text = f"./{text}"
            if text != reference.text and reference.path[0] == "model":
                data["model"].setdefault("known_as", reference.text)
        _put(data, reference.path, text)
    return data, [InputFile(source, path) for path, source in sorted(travels.items())], mistakes


class _Places:
    """Where folders of the submitter's disk appear on the host."""

    def __init__(self, root: Path, data: Mapping[str, Any]) -> None:
        self._root = root
        self._outside: dict[str, str] = {}
        self._taken = {Path(os.path.normpath(r.text)).parts[:2] for r in list_references(data)}

    def of(self, look: ResolvedReference) -> str:
        folder = Path(os.path.normpath(look.root))
        if folder.is_relative_to(self._root):
            return folder.relative_to(self._root).as_posix()
        key = str(folder) if look.rest != "." else f"{folder}/."
        if key not in self._outside:
            self._outside[key] = f"{EXTERNAL}/{self._free()}" + (f"/{folder.name}" if look.rest == "." else "")
        return self._outside[key]

    def _free(self) -> int:
        number = len(self._outside)
        while (EXTERNAL, str(number)) in self._taken:
            number += 1
        self._taken.add((EXTERNAL, str(number)))
        return number


def _joined(folder: str, name: str) -> str:
    return Path(os.path.normpath(os.path.join(folder, name))).as_posix()


def _put(data: Any, path: KeyPath, value: str) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value

"""The inputs of a run: the files on the submitter's disk that are uploaded with it, and their paths on the host.

Data files and globs, `files:` and local model folders are uploaded. A file in the run file's folder keeps its relative
path; one outside becomes `external/<n>/<name>`, and the run file is rewritten accordingly. A path with a scheme
(`hf://…`) is not touched.
"""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runfile.mistakes import KeyPath, Mistake, find_nearest

EXTERNAL = "external"
INIT_FROM = "init_from"  #: the folder on a host of what `model.init_from` names; the coordinator adds it
INIT_BASE = f"{INIT_FROM}/base"  #: the base model of an adapter in there, where the Hub does not have it
ROW_SUFFIXES = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".feather",
)  #: suffixes of files of rows
_SKIPPED = {".git", "__pycache__", ".DS_Store"}
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that is uploaded: its path on this host, and its POSIX path in the run's working folder."""

    source: Path
    path: str


@dataclass(frozen=True, slots=True)
class LocalReference:
    """A key of a run file whose value names something on the submitter's disk."""

    path: KeyPath
    text: str
    kind: Literal["data", "files", "model"]


@dataclass(frozen=True, slots=True)
class ResolvedReference:
    """The files of a reference relative to `root`, and the rest of the reference's text as read from there."""

    root: Path
    rest: str
    files: tuple[str, ...]


def list_references(data: Mapping[str, Any]) -> Iterator[LocalReference]:
    """Yield every local reference of a run file, written or resolved; malformed values are skipped."""
    rows = data.get("data")
    if isinstance(rows, Mapping):
        yield from _list_data_references(("data", "train"), rows.get("train"))
        if not (isinstance(rows.get("eval"), Mapping) and "path" not in rows["eval"]):
            yield from _list_data_references(("data", "eval"), rows.get("eval"))
    files = data.get("files")
    for index, text in enumerate(files if isinstance(files, list) else ()):
        if isinstance(text, str) and text:
            yield LocalReference(("files", index), text, "files")
    for key in ("model", "teacher"):
        model = data.get(key)
        name = model.get("name_or_path") if isinstance(model, Mapping) else None
        if isinstance(name, str) and _is_local_folder(name):
            yield LocalReference((key, "name_or_path"), name, "model")
    rewards = data.get("rewards")
    for index, reward in enumerate(rewards if isinstance(rewards, list) else ()):
        name = reward.get("model") if isinstance(reward, Mapping) else None
        if isinstance(name, str) and _is_local_folder(name):
            yield LocalReference(("rewards", index, "model"), name, "model")


def _list_data_references(path: KeyPath, value: Any) -> Iterator[LocalReference]:
    entries = (
        [((*path, index), entry) for index, entry in enumerate(value)] if isinstance(value, list) else [(path, value)]
    )
    for place, entry in entries:
        at, text = ((*place, "path"), entry.get("path")) if isinstance(entry, Mapping) else (place, entry)
        if isinstance(text, str) and text and "://" not in text:
            yield LocalReference(at, text, "data")


def _is_local_folder(name: str) -> bool:
    """Return whether a model's name is a folder of this disk.

    It is a name on the Hub unless it begins like a path; an absolute path that is missing here is one on the host.
    """
    if name.startswith(("./", "../", "~/")) or name in (".", ".."):
        return True
    return name.startswith("/") and os.path.isdir(name)


def find_missing(data: Mapping[str, Any], base: Path) -> Iterator[Mistake]:
    """Yield a mistake for each file that the run file names and the disk does not have."""
    for reference in list_references(data):
        problem = _resolve(reference, base)
        if isinstance(problem, Mistake):
            yield problem


def _resolve(reference: LocalReference, base: Path) -> ResolvedReference | Mistake:
    text = os.path.expanduser(reference.text)
    whole = base / text
    if not whole.exists() and _MAGIC & set(text):
        return _resolve_glob(reference, base, text)
    if whole.is_dir() and reference.kind != "data":
        return _resolve_folder(reference, whole)
    if whole.is_dir() and (rows := list_row_files(whole)):
        return ResolvedReference(whole, ".", tuple(rows))
    if whole.is_file() and reference.kind != "model":
        if reference.kind == "data" and not whole.stat().st_size:
            return Mistake(reference.path, f'"{reference.text}" is empty', "each line of it is a row")
        return ResolvedReference(whole.parent, whole.name, (whole.name,))
    return Mistake(reference.path, *_explain_missing(reference, whole))


def list_row_files(folder: Path) -> list[str]:
    """Return the files of rows below a folder, relative to it and sorted. They are recognized by suffix alone."""
    found: list[str] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        plain = {name: name.lower().removesuffix(".gz").removesuffix(".zst") for name in names}
        rows = sorted(name for name in names if plain[name].endswith(ROW_SUFFIXES) and not name.startswith("."))
        found += [os.path.relpath(os.path.join(here, name), folder) for name in rows]
    return found


def _explain_missing(reference: LocalReference, whole: Path) -> tuple[str, str]:
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
    hint = f"a data set on the Hub is written hf://{reference.text}" if hub else _suggest_neighbour(whole)
    return f'there is no {"folder" if reference.kind == "model" else "file"} "{reference.text}"', hint


def _suggest_neighbour(whole: Path) -> str:
    if not whole.parent.is_dir():
        return f"the folder {whole.parent} does not exist"
    close = find_nearest(whole.name, sorted(entry.name for entry in whole.parent.iterdir()))
    return f"did you mean {close}?" if close else f"looked in {whole.parent.absolute()}"


def _resolve_glob(reference: LocalReference, base: Path, text: str) -> ResolvedReference | Mistake:
    parts = Path(text).parts
    fixed = next(index for index, part in enumerate(parts) if _MAGIC & set(part))
    root, rest = base / Path(*parts[:fixed]), str(Path(*parts[fixed:]))
    hits = sorted(hit for hit in glob.glob(rest, root_dir=root, recursive=True) if (root / hit).is_file())
    if not hits:
        return Mistake(reference.path, f'no file matches "{reference.text}"', f"looked in {root.absolute()}")
    return ResolvedReference(root, rest, tuple(hits))


def _resolve_folder(reference: LocalReference, folder: Path) -> ResolvedReference | Mistake:
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
    """Return `data` rewritten for the host, the files to upload, and a mistake for each that is missing."""
    root = Path(os.path.abspath(base))
    paths, sources, mistakes = _HostPaths(root, data), dict[str, Path](), list[Mistake]()
    for reference in list_references(data):
        resolved = _resolve(reference, root)
        if isinstance(resolved, Mistake):
            mistakes.append(resolved)
            continue
        folder = paths.get(resolved)
        for name in resolved.files:
            sources[_join(folder, name)] = resolved.root / name
        text = _join(folder, resolved.rest)
        if reference.kind == "model":
            text = f"./{text}"
            if text != reference.text and reference.path[0] == "model":
                data["model"].setdefault("known_as", reference.text)
        _set_value(data, reference.path, text)
    return data, [InputFile(source, path) for path, source in sorted(sources.items())], mistakes


class _HostPaths:
    """The paths on the host of folders of the submitter's disk."""

    def __init__(self, root: Path, data: Mapping[str, Any]) -> None:
        self._root = root
        self._outside: dict[str, str] = {}
        self._taken = {Path(os.path.normpath(r.text)).parts[:2] for r in list_references(data)}

    def get(self, resolved: ResolvedReference) -> str:
        folder = Path(os.path.normpath(resolved.root))
        if folder.is_relative_to(self._root):
            return folder.relative_to(self._root).as_posix()
        key = str(folder) if resolved.rest != "." else f"{folder}/."
        if key not in self._outside:
            self._outside[key] = f"{EXTERNAL}/{self._find_free_number()}" + (
                f"/{folder.name}" if resolved.rest == "." else ""
            )
        return self._outside[key]

    def _find_free_number(self) -> int:
        number = len(self._outside)
        while (EXTERNAL, str(number)) in self._taken:
            number += 1
        self._taken.add((EXTERNAL, str(number)))
        return number


def _join(folder: str, name: str) -> str:
    return Path(os.path.normpath(os.path.join(folder, name))).as_posix()


def _set_value(data: Any, path: KeyPath, value: str) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value

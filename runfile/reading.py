"""Reading run files: YAML, JSON and TOML become the same plain values, with the position of every key.

YAML is read by the core schema of YAML 1.2: `3e-4` is a number, `yes`, `no`, `on` and `off` are text, `010` is ten.
A key that is given twice is a mistake.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runfile.mistakes import KeyPath, Mistake, Position, RunFileErrors, format_path

MAX_BYTES = 4 << 20
MAX_NODES = 200_000  #: values that a file may have once its aliases are followed

_TEXTS = ("env", "labels")  #: sections in which `--set` always gives text
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values, and the position of each."""

    data: dict[str, Any]
    name: str = "the run file"
    keys: Mapping[KeyPath, Position] = field(default_factory=dict)
    values: Mapping[KeyPath, Position] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)  #: the `--set` arguments by path

    def locate(self, mistake: Mistake, *, key: bool = False) -> Mistake:
        """Return the mistake with the position of its key or value, else of the nearest section around it."""
        for length in range(len(mistake.path), 0, -1):
            path = mistake.path[:length]
            if path in self.overrides:
                return mistake.with_position(None, self.overrides[path])
            whole = length == len(mistake.path)
            mark = (None if key or not whole else self.values.get(path)) or self.keys.get(path)
            if mark:
                return mistake.with_position(mark, "")
        return mistake


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
    ("merge", r"^(?:<<)$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def read_document(path: Path) -> Document:
    """Read a file as YAML, JSON or TOML, by its suffix. Raises RunFileErrors."""
    try:
        if path.is_dir():
            raise RunFileErrors([Mistake((), "this is a folder, not a run file")], str(path))
        content = path.read_bytes()
    except OSError as error:
        raise RunFileErrors([Mistake((), f"cannot be read: {error.strerror}")], str(path)) from error
    return decode_document(content, path.suffix.lower(), str(path))


def decode_document(content: bytes, suffix: str, name: str) -> Document:
    """Read bytes; `suffix` is `.json`, `.toml` or anything else for YAML. Raises RunFileErrors."""
    if len(content) > MAX_BYTES:
        raise RunFileErrors([Mistake((), f"larger than {MAX_BYTES >> 20} MiB: this is not a run file")], name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunFileErrors([Mistake((), "is not UTF-8 text")], name) from error
    reader = {".json": _read_json, ".toml": _read_toml}.get(suffix, _read_yaml)
    try:
        return reader(text, name)
    except RunFileErrors:
        raise
    except RecursionError as error:
        raise RunFileErrors([Mistake((), "is nested too deeply")], name) from error
    except ValueError as error:  # Python converts no more than 4300 digits
        raise RunFileErrors([Mistake((), "holds a number that is too long")], name) from error


def parse_yaml_value(text: str) -> Any:
    """Return one value as YAML types it: `3e-4` is a number, `[a, b]` a list."""
    node = yaml.compose(text, Loader=_Loader)
    return None if node is None else _Reader("").value(node, ())


def _read_yaml(text: str, name: str) -> Document:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RunFileErrors([_not_yaml(error)], name) from error
    reader = _Reader(name)
    data = None if node is None else reader.value(node, ())
    if reader.mistakes:
        raise RunFileErrors(reader.mistakes, name)
    return Document(_as_mapping(data, name), name, reader.keys, reader.values)


def _not_yaml(error: yaml.YAMLError) -> Mistake:
    place = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "cannot be read"
    if "'\\t'" in problem:
        problem = "a tab; indent with spaces"
    problem = problem.replace("'<stream end>'", "the end of the file")
    return Mistake((), f"not YAML: {problem}", position=Position(place.line + 1, place.column + 1) if place else None)


def _as_mapping(data: Any, name: str) -> dict[str, Any]:
    if data is None:
        raise RunFileErrors([Mistake((), "is empty")], name)
    if not isinstance(data, dict):
        raise RunFileErrors([Mistake((), "a run file is a mapping (key: value), at its top level")], name)
    return data


class _Reader:
    """Constructs values from composed nodes, and collects positions and mistakes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys: dict[KeyPath, Position] = {}
        self.values: dict[KeyPath, Position] = {}
        self.mistakes: list[Mistake] = []
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count += 1
        if self._count > MAX_NODES or id(node) in self._open:
            raise RunFileErrors([Mistake(path, "aliases (*name) make this file endless")], self.name)
        self.values[path] = _mark(node)
        self._open.add(id(node))
        try:
            return self._construct(node, path)
        finally:
            self._open.discard(id(node))

    def _construct(self, node: yaml.Node, path: KeyPath) -> Any:
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path)
            case yaml.SequenceNode():
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged = self._merged(value_node, path) | merged
                continue
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            if key in own:
                first = self.keys[(*path, key)].line
                self.mistakes.append(
                    Mistake((*path, key), f"given twice (first on line {first})", position=_mark(key_node))
                )
                continue
            self.keys[(*path, key)] = _mark(key_node)
            own[key] = self.value(value_node, (*path, key))
        return merged | own

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        value = self.value(node, path)
        merged: dict[str, Any] = {}
        for part in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(part, dict):
                self.mistakes.append(Mistake(path, "<< merges mappings only", position=_mark(node)))
                return {}
            merged |= part
        return merged


def _mark(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _read_json(text: str, name: str) -> Document:
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                twice.append(key)
            seen[key] = value
        return seen

    try:
        data = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise RunFileErrors(
            [Mistake((), f"not JSON: {error.msg}", position=Position(error.lineno, error.colno))], name
        ) from error
    if twice:
        raise RunFileErrors([Mistake((key,), "given twice") for key in twice], name)
    reader = _Reader(name)
    try:  # JSON is YAML once its tabs are spaces; only the places are taken from this reading
        node = yaml.compose(text.replace("\t", " "), Loader=_Loader)
    except yaml.YAMLError:
        node = None
    if node is not None:
        reader.value(node, ())
    return Document(_as_mapping(data, name), name, reader.keys, reader.values)


_TOML_TABLE = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?")
_TOML_KEY = re.compile(r"^(\s*)([A-Za-z0-9_\-\".' ]+?)\s*=")


def _read_toml(text: str, name: str) -> Document:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        mark = Position(int(place[1]), int(place[2])) if place else None
        problem = str(error).partition(" (at ")[0]
        raise RunFileErrors([Mistake((), f"not TOML: {problem}", position=mark)], name) from error
    return Document(data, name, _toml_keys(text))


def _toml_keys(text: str) -> dict[KeyPath, Position]:
    """Return the positions of keys by scanning each line; multi-line strings may add positions that nobody looks up."""
    keys: dict[KeyPath, Position] = {}
    table: KeyPath = ()
    counts: dict[KeyPath, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TOML_TABLE.match(line):
            table = _toml_path(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            keys.setdefault(table, Position(number, 1))
        elif key := _TOML_KEY.match(line):
            keys.setdefault((*table, *_toml_path(key[2])), Position(number, len(key[1]) + 1))
    return keys


def _toml_path(text: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def apply_overrides(document: Document, sets: Sequence[str]) -> Document:
    """Return the document with each `a.b=value` set, typed as in YAML; `data.train[0].path` reaches into lists."""
    data = json.loads(json.dumps(document.data)) if sets else document.data
    overrides: dict[KeyPath, str] = {}
    mistakes: list[Mistake] = []
    for assignment in sets:
        name, equals, text = assignment.partition("=")
        path = _assigned_path(name)
        if not equals or not path:
            mistakes.append(
                Mistake((), "--set takes key=value, for instance options.learning_rate=1e-4", override=assignment)
            )
            continue
        try:
            _assign(data, path, text if path[0] in _TEXTS and len(path) > 1 else parse_yaml_value(text))
            overrides[path] = assignment
        except (yaml.YAMLError, ValueError) as error:
            mistakes.append(Mistake(path, str(error).splitlines()[0], override=assignment))
    if mistakes:
        raise RunFileErrors(mistakes, document.name)
    return Document(data, document.name, document.keys, document.values, overrides)


def _assigned_path(name: str) -> KeyPath:
    parts = [part for part in re.split(r"[.\[\]]+", name.strip()) if part]
    return tuple(int(part) if part.isdigit() and index else part for index, part in enumerate(parts))


def _assign(data: Any, path: KeyPath, value: Any) -> None:
    for at, part in enumerate(path):
        last = at == len(path) - 1
        if isinstance(data, list):
            if not isinstance(part, int) or part >= len(data):
                raise ValueError(f"{format_path(path[:at])} is a list of {len(data)}: say which one, counted from 0")
        elif isinstance(data, dict):
            part = str(part)
        else:
            raise ValueError(f"{format_path(path[:at])} is a single value: nothing lies inside it")
        if last:
            data[part] = value
        elif isinstance(data, dict):
            data = data.setdefault(str(part), {})
            if data is None:
                raise ValueError(f"{format_path(path[: at + 1])} is empty in the file")
        else:
            data = data[part]

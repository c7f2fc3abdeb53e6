"""Rows to train on: read from JSON lines, recognised, checked, weighed and split. Deterministic by seed, row for row.

Three kinds are known: `text` (`{"text": …}`), `prompt_completion` (`{"prompt": …, "completion": …}`, both text or
both lists of messages) and `chat` (`{"messages": [{"role": …, "content": …}, …]}`).
"""

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.runfile import Data, Source, Split
from trainers.errors import ConfigError

Row = dict[str, Any]
Fetch = Callable[[Source], Iterable[Mapping[str, Any]]]  #: rows of a data set on the Hub

#: Which columns make a kind, in the order they are looked for.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
#: How files begin that are not JSON lines but are often named in their place.
_MAGIC: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
}
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind, with no other columns than the kind's."""

    kind: str
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class _Part:
    """One source's rows."""

    source: Source
    rows: Sequence[Row]


def load(data: Data, *, seed: int, kinds: Sequence[str], fetch: Fetch, base: Path) -> tuple[Rows, Rows | None]:
    """The rows to train on and those held out (None when `data.eval` says nothing). ConfigError names file and line."""
    reader = _Reader(data, kinds, fetch, base)
    parts = reader.parts(data.train, "data.train")
    held_out: Rows | None = None
    if isinstance(data.eval, Split):
        parts, rows = split(parts, data.eval.split, seed)
        held_out = Rows(reader.kind, rows)
    elif data.eval is not None:
        held_out = Rows(reader.kind, mix(reader.parts(data.eval, "data.eval"), seed))
    train = Rows(reader.kind, mix(parts, seed))
    for name, rows_ in (("data.train", train), ("data.eval", held_out)):
        if rows_ is not None and not rows_.rows:
            raise ConfigError(f"{name}: no rows are left")
    return train, held_out


def mix(parts: Iterable[_Part], seed: int) -> list[Row]:
    """The parts one after the other, each `weight` times: 2 is every row twice, 0.5 half of the rows, picked by
    seed.
    """
    mixed: list[Row] = []
    for index, part in enumerate(parts):
        whole, rest = divmod(part.source.weight, 1)
        mixed += list(part.rows) * int(whole)
        chosen = _chosen(len(part.rows), round(rest * len(part.rows)), f"mix:{seed}:{index}")
        mixed += [row for number, row in enumerate(part.rows) if number in chosen]
    return mixed


def split(parts: Sequence[_Part], share: float, seed: int) -> tuple[list[_Part], list[Row]]:
    """The parts without the held-out rows, and those: `share` of each part, before weights, so none is on both
    sides.
    """
    kept: list[_Part] = []
    held: list[Row] = []
    for index, part in enumerate(parts):
        count = max(round(share * len(part.rows)), 1 if len(part.rows) > 1 else 0)
        chosen = _chosen(len(part.rows), count, f"split:{seed}:{index}")
        held += [row for number, row in enumerate(part.rows) if number in chosen]
        kept.append(_Part(part.source, [row for number, row in enumerate(part.rows) if number not in chosen]))
    return kept, held


def _chosen(total: int, count: int, salt: str) -> set[int]:
    """`count` of `total` row numbers by hash: the same on every Python, unlike `random`'s own choices."""
    if not count:
        return set()
    return set(sorted(range(total), key=lambda number: hashlib.sha256(f"{salt}:{number}".encode()).digest())[:count])


class _Reader:
    """Reads sources of one data section; the first row decides the kind where the run file does not."""

    def __init__(self, data: Data, kinds: Sequence[str], fetch: Fetch, base: Path) -> None:
        self.kind: str = "" if data.format == "auto" else data.format
        self._shape = ""  #: what the first row's columns hold
        self._kinds, self._columns, self._fetch, self._base = kinds, data.columns, fetch, base
        if self.kind and self.kind not in kinds:
            raise ConfigError(f"data.format: {self.kind} cannot be used with this method; it takes {', '.join(kinds)}")

    def parts(self, sources: Sequence[Source], name: str) -> list[_Part]:
        parts = [_Part(source, list(self._rows(source))) for source in sources]
        if not any(part.rows for part in parts):
            raise ConfigError(f"{name}: {', '.join(str(source.path) for source in sources)} has no rows")
        return parts

    def _rows(self, source: Source) -> Iterator[Row]:
        for place, row in self._raw(source):
            renamed = {self._columns.get(name, name): value for name, value in row.items()}
            if len(renamed) < len(row):
                raise ConfigError(f"{place}: data.columns gives two columns one name, of {', '.join(map(str, row))}")
            if not self.kind:
                self.kind = _kind_of(renamed, self._kinds, place)
            checked = _checked(renamed, self.kind, place)
            self._require_alike(checked, place)
            yield checked

    def _require_alike(self, row: Row, place: str) -> None:
        """Text and messages are told apart once for all rows, by the first."""
        shape = "text" if all(isinstance(value, str) for value in row.values()) else "messages"
        self._shape = self._shape or shape
        if shape != self._shape:
            raise ConfigError(f"{place}: {' and '.join(row)} are {shape}, in the rows before {self._shape}")

    def _raw(self, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
        path = source.path or ""
        if path.startswith("hf://"):
            for number, row in enumerate(self._fetch(source), 1):
                yield f"{path} row {number}", row
            return
        for file in self._files(path):
            name = str(file.relative_to(self._base) if file.is_relative_to(self._base) else file)
            for number, row in read_jsonl(file, name):
                yield f"{name}:{number}", row

    def _files(self, path: str) -> list[Path]:
        whole = self._base / Path(path).expanduser()
        if whole.is_file():
            return [whole]
        if whole.is_dir():
            raise ConfigError(f"{path}: is a folder; name the files in it, for instance {path}/*.jsonl")
        found = glob.glob(str(Path(path).expanduser()), root_dir=self._base, recursive=True)
        files = [self._base / name for name in sorted(found) if (self._base / name).is_file()]
        if not files:
            raise ConfigError(f"data: there is no file {path}")
        return files


def read_jsonl(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    """Line numbers (from 1) and objects of a JSON lines file; blank lines are passed over, a byte order mark too.

    ConfigError calls it by `name`.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and (kind := _other_kind(line)):
                raise ConfigError(f"{name}: is a {kind} file; rows are read from JSON lines, uncompressed")
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                row = json.loads(text.decode())
                if _HALF_PAIR.search(text):  # JSON can say half a character; no tokenizer can read it
                    json.dumps(row, ensure_ascii=False).encode()
            except (UnicodeDecodeError, UnicodeEncodeError) as error:
                raise ConfigError(f"{name}:{number}: not UTF-8 text ({error.reason})") from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise ConfigError(f"{name}:{number}: not JSON ({error}); each line is one object") from error
            if not isinstance(row, dict):
                raise ConfigError(f'{name}:{number}: a row is an object like {{"text": "…"}}, found {_shown(row)}')
            yield number, row


def _other_kind(start: bytes) -> str | None:
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


def _kind_of(row: Row, kinds: Sequence[str], place: str) -> str:
    for kind, columns in COLUMNS.items():
        if kind in kinds and all(column in row for column in columns):
            return kind
    wanted = " or ".join("+".join(columns) for kind, columns in COLUMNS.items() if kind in kinds)
    names = ", ".join(map(str, row)) or "none"
    raise ConfigError(
        f"{place}: columns are {names}; wanted {wanted} (data.columns renames, for instance {{body: text}})"
    )


def _checked(row: Row, kind: str, place: str) -> Row:
    """The row with only its kind's columns; ConfigError says what is wrong with it."""
    for column in COLUMNS[kind]:
        if column not in row:
            raise ConfigError(f"{place}: no column {column}, which every row of format {kind} has")
    if row.get("tools"):
        raise ConfigError(f"{place}: rows with tools are not supported yet")
    kept = {column: row[column] for column in COLUMNS[kind]}
    if kind == "chat":
        return {"messages": _messages(kept["messages"], f"{place}: messages")}
    if kind == "prompt_completion" and not all(isinstance(value, str) for value in kept.values()):
        return {column: _messages(value, f"{place}: {column}") for column, value in kept.items()}
    for column, value in kept.items():
        if not isinstance(value, str):
            raise ConfigError(f"{place}: {column} is text, found {_shown(value)}")
    return kept


def _messages(value: Any, place: str) -> list[Row]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{place}: a list of messages is wanted, found {_shown(value)}")
    for number, message in enumerate(value, 1):
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f'{place}: message {number} is {{"role": "…", "content": "…"}}, found {_shown(message)}')
        if message.get("tool_calls"):
            raise ConfigError(f"{place}: message {number} has tool_calls, which are not supported yet")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _shown(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"

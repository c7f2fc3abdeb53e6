"""Rows to train on: read, weighed and split. Deterministic by seed, row for row. What a row is, and
what is wrong with one, `trainers.rows` says.
"""

import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.runfile import ROWS, Data, Source, Split, rows_in
from trainers import files, objects, tasks
from trainers.errors import ConfigError
from trainers.rows import COLUMNS, Row, checked, kind_of, readable, trained_as, wanted

Fetch = Callable[[Source], Iterable[Mapping[str, Any]]]  #: rows of a data set on the Hub


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind, with no other columns than the kind's."""

    kind: str
    rows: Sequence[Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """Of every row."""
        return tuple(self.rows[0]) if self.rows else ()

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class _Part:
    """One source's rows."""

    source: Source
    rows: Sequence[Row]


def load(data: Data, *, seed: int, kinds: Sequence[str], fetch: Fetch, base: Path) -> tuple[Rows, Rows | None]:
    """The rows to train on and those held out (None when `data.eval` says nothing). ConfigError names file and line."""
    reader = Reader(data, seed, kinds, fetch, base)
    parts = reader.parts(data.train, "data.train")
    held_out: Rows | None = None
    if isinstance(data.eval, Split):
        parts, rows = split(parts, data.eval.split, seed)
        held_out = Rows(reader.kind, rows)
    elif data.eval is not None:
        held = reader.parts(data.eval, "data.eval")
        parts = _without(parts, [part for part in held if part.source.disjoint_from])
        held_out = Rows(reader.kind, mix(held, seed))
    train = Rows(reader.kind, mix(parts, seed))
    for name, rows_ in (("data.train", train), ("data.eval", held_out)):
        if rows_ is not None and not rows_.rows:
            raise ConfigError(f"{name}: no rows are left")
    return train, held_out


def _without(parts: list[_Part], held: Sequence[_Part]) -> list[_Part]:
    """The parts without the rows that ask what a row of `held` asks."""
    asked = {_question(row) for part in held for row in part.rows}
    return [_Part(part.source, [row for row in part.rows if _question(row) not in asked]) for part in parts]


def _question(row: Row) -> str:
    return json.dumps(row.get("prompt", row), sort_keys=True)


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


class Reader:
    """Reads sources of one data section; the first row decides the kind where the run file does not."""

    def __init__(self, data: Data, seed: int, kinds: Sequence[str], fetch: Fetch, base: Path) -> None:
        self._seed = seed
        self._kind: str = "" if data.format == "auto" else data.format  #: as it is in the files
        self._shape = ""  #: what the first row's columns hold
        self._names: frozenset[str] = frozenset()  #: the first row's columns
        self._kinds, self._columns, self._fetch, self._base = readable(kinds), data.columns, fetch, base
        if self._kind and self._kind not in self._kinds:
            raise ConfigError(
                f"data.format: {self._kind} cannot be used with this method; it takes {', '.join(self._kinds)} "
                f"({wanted(self._kinds)})"
            )

    @property
    def kind(self) -> str:
        """Of the rows that were read."""
        return trained_as(self._kind)

    def parts(self, sources: Sequence[Source], name: str) -> list[_Part]:
        parts = [_Part(source, list(self._rows(source))) for source in sources]
        if not any(part.rows for part in parts):
            raise ConfigError(
                f"{name}: {', '.join(str(source.path or source.reasoning_gym) for source in sources)} has no rows"
            )
        return parts

    def _rows(self, source: Source) -> Iterator[Row]:
        for found in self.examined(source):
            if isinstance(found, ConfigError):
                raise found
            yield found

    def examined(self, source: Source) -> Iterator[Row | ConfigError]:
        """The rows of a source as they are trained on; in the place of one that is wrong, why. Raises ConfigError where
        nothing more can be read.
        """
        for place, row in self._raw(source):
            try:
                yield self._good(row, place)
            except ConfigError as error:
                yield error

    def _good(self, row: Mapping[str, Any], place: str) -> Row:
        renamed = {self._columns.get(name, name): value for name, value in row.items()}
        if len(renamed) < len(row):
            raise ConfigError(f"{place}: data.columns gives two columns one name, of {', '.join(map(str, row))}")
        if not self._kind:
            self._kind = kind_of(renamed, self._kinds, place)
        good = checked(renamed, self._kind, place)
        self._require_alike(good, place)
        return good

    def _require_alike(self, row: Row, place: str) -> None:
        """Text and messages, and whether there is a prompt, are told once for all rows, by the first."""
        said = {name: value for name, value in row.items() if name in COLUMNS[self.kind] and name != "label"}
        shape = "text" if all(isinstance(value, str) for value in said.values()) else "messages"
        self._shape, self._names = self._shape or shape, self._names or frozenset(row)
        if shape != self._shape:
            raise ConfigError(f"{place}: {' and '.join(said)} are {shape}, in the rows before {self._shape}")
        if odd := self._names ^ row.keys():
            has = "has a" if odd <= row.keys() else "has no"
            raise ConfigError(f"{place}: {has} {', '.join(odd)}, other than the rows before; give it in all or in none")

    def _raw(self, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
        path = source.path or ""
        if source.reasoning_gym is not None:
            for number, task in enumerate(tasks.rows(source, self._seed), 1):
                yield f"{source.reasoning_gym} task {number}", task
            return
        if path.startswith("hf://"):
            for number, row in enumerate(self._fetch(source), 1):
                yield f"{path} row {number}", row
            return
        if objects.is_in_a_bucket(path):
            for file, name in objects.fetched(path):
                yield from files.read(file, name)
            return
        for file in self._files(path):
            name = str(file.relative_to(self._base) if file.is_relative_to(self._base) else file)
            yield from files.read(file, name)

    def _files(self, path: str) -> list[Path]:
        whole = self._base / Path(path).expanduser()
        if whole.is_file():
            return [whole]
        if whole.is_dir():
            if inside := rows_in(whole):
                return [whole / name for name in inside]
            raise ConfigError(f"{path}: the folder holds no file of rows ({', '.join(ROWS)})")
        found = glob.glob(str(Path(path).expanduser()), root_dir=self._base, recursive=True)
        hits = [self._base / name for name in sorted(found) if (self._base / name).is_file()]
        if not hits:
            raise ConfigError(f"data: there is no file {path}")
        return hits

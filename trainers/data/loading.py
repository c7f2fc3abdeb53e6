"""Rows to train on: read, weighed and split. Deterministic by seed, row for row. What a row is, and
what is wrong with one, `trainers.data.row_formats` says.

Large sources are read once on a host: the next attempt there finds them by their content and by how they are read.
"""

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runfile import ROWS, Data, Source, Split, rows_in
from storage.manifest import hash_file
from trainers.data import bucket_rows, cache, files, reasoning_gym
from trainers.data.disk_rows import Large, found, gathered, joined, taken
from trainers.data.row_formats import COLUMNS, Row, checked, kind_of, readable, trained_as, wanted
from trainers.errors import ConfigError
from trainers.models import hub

_READING = 1  #: changes when the same files and settings give other rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind, with no other columns than the kind's."""

    kind: str
    rows: Sequence[Row]
    made_of: str = ""  #: a digest of what large rows were taken from, and how

    @property
    def columns(self) -> tuple[str, ...]:
        """Of every row."""
        return tuple(self.rows[0]) if self.rows else ()

    @property
    def digest(self) -> str:
        """Of the rows, in their order."""
        return self.made_of or _digest(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class _Part:
    """One source's rows."""

    source: Source
    rows: Sequence[Row]
    made_of: str = ""

    def said(self) -> list[Any]:
        return [self.made_of or _digest(self.rows), self.source.weight]


def load(
    data: Data, *, seed: int, kinds: Sequence[str], base: Path, pins: Mapping[str, str] | None = None
) -> tuple[Rows, Rows | None]:
    """The rows to train on and those held out (None when `data.eval` says nothing). `pins` names the commits of data
    sets on the Hub (see `trainers.models.hub`). ConfigError names file and line.
    """
    reader = Reader(data, seed, kinds, base, pins or {})
    parts = reader.parts(data.train, "data.train")
    how: list[Any] = [seed, None, []]
    held_out: Rows | None = None
    if isinstance(data.eval, Split):
        how[1] = data.eval.split
        kept, rows = split(parts, data.eval.split, seed)
        held_out = Rows(reader.kind, rows)
    elif data.eval is not None:
        held = reader.parts(data.eval, "data.eval")
        apart = [part for part in held if part.source.disjoint_from]
        how[2] = [part.said() for part in apart]
        kept = _without(parts, apart) if apart else parts
        held_out = Rows(reader.kind, mix(held, seed))
    else:
        kept = parts
    mixed = mix(kept, seed)
    made_of = _digest([{"how": how, "of": [part.said() for part in parts]}]) if isinstance(mixed, Large) else ""
    train = Rows(reader.kind, mixed, made_of)
    for name, rows_ in (("data.train", train), ("data.eval", held_out)):
        if rows_ is not None and not rows_.rows:
            raise ConfigError(f"{name}: no rows are left")
    return train, held_out


def _digest(rows: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
    return f"sha256:{digest.hexdigest()}"


def _without(parts: list[_Part], held: Sequence[_Part]) -> list[_Part]:
    """The parts without the rows that ask what a row of `held` asks."""
    asked = {_question(row) for part in held for row in part.rows}
    return [
        replace(part, rows=taken(part.rows, [at for at, row in enumerate(part.rows) if _question(row) not in asked]))
        for part in parts
    ]


def _question(row: Row) -> str:
    return json.dumps(row.get("prompt", row), sort_keys=True)


def mix(parts: Iterable[_Part], seed: int) -> Sequence[Row]:
    """The parts one after the other, each `weight` times: 2 is every row twice, 0.5 half of the rows, picked by
    seed.
    """
    mixed: list[Sequence[Row]] = []
    for index, part in enumerate(parts):
        whole, rest = divmod(part.source.weight, 1)
        mixed += [part.rows] * int(whole)
        if rest:
            chosen = _chosen(len(part.rows), round(rest * len(part.rows)), f"mix:{seed}:{index}")
            mixed.append(taken(part.rows, np.flatnonzero(chosen)))
    return joined(mixed)


def split(parts: Sequence[_Part], share: float, seed: int) -> tuple[list[_Part], Sequence[Row]]:
    """The parts without the held-out rows, and those: `share` of each part, before weights, so none is on both
    sides.
    """
    kept: list[_Part] = []
    held: list[Sequence[Row]] = []
    for index, part in enumerate(parts):
        count = max(round(share * len(part.rows)), 1 if len(part.rows) > 1 else 0)
        chosen = _chosen(len(part.rows), count, f"split:{seed}:{index}")
        held.append(taken(part.rows, np.flatnonzero(chosen)))
        kept.append(replace(part, rows=taken(part.rows, np.flatnonzero(~chosen))))
    return kept, joined(held)


def _chosen(total: int, count: int, salt: str) -> NDArray[np.bool_]:
    """Which `count` of `total` rows, by hash: the same on every Python, unlike `random`'s own choices. (total,)"""
    chosen = np.zeros(total, dtype=bool)
    if count:
        ranks = (hashlib.sha256(f"{salt}:{number}".encode()).digest()[:8] for number in range(total))
        order = np.fromiter((int.from_bytes(rank) for rank in ranks), np.uint64, total)
        chosen[np.argsort(order, kind="stable")[:count]] = True
    return chosen


@dataclass(frozen=True, slots=True)
class _Told:
    """What the rows so far say of all."""

    kind: str = ""  #: as it is in the files
    shape: str = ""  #: what the first row's columns hold
    names: Sequence[str] = ()  #: the first row's columns


class Reader:
    """Reads sources of one data section; the first row decides the kind where the run file does not."""

    def __init__(self, data: Data, seed: int, kinds: Sequence[str], base: Path, pins: Mapping[str, str]) -> None:
        self._seed, self._pins, self._columns, self._base = seed, pins, data.columns, base
        self._kinds = readable(kinds)
        self._found: dict[str, list[tuple[Path, str]]] = {}
        self._told = _Told("" if data.format == "auto" else data.format)
        if self._told.kind and self._told.kind not in self._kinds:
            raise ConfigError(
                f"data.format: {self._told.kind} cannot be used with this method; it takes {', '.join(self._kinds)} "
                f"({wanted(self._kinds)})"
            )

    @property
    def kind(self) -> str:
        """Of the rows that were read."""
        return trained_as(self._told.kind)

    def parts(self, sources: Sequence[Source], name: str) -> list[_Part]:
        parts = [self._part(source) for source in sources]
        if not any(part.rows for part in parts):
            raise ConfigError(
                f"{name}: {', '.join(str(source.path or source.reasoning_gym) for source in sources)} has no rows"
            )
        return parts

    def _part(self, source: Source) -> _Part:
        if source.reasoning_gym is not None:
            return _Part(source, list(self._rows(source)))
        asked = [_READING, self._content(source), asdict(self._told), self._kinds, dict(self._columns)]
        folder = cache.place("rows", *asked)
        if (before := found(folder)) is not None:
            self._told = _Told(**before[1])
            return _Part(source, before[0], folder.name)
        rows = gathered(self._rows(source), folder, lambda: asdict(self._told))
        return _Part(source, rows, folder.name if isinstance(rows, Large) else "")

    def _content(self, source: Source) -> Any:
        """What decides which rows a source has."""
        if (source.path or "").startswith("hf://"):
            return [source.path, source.name, source.split, hub.dataset_commit(source, self._pins)]
        return [[hash_file(file)[0], *file.suffixes[-2:]] for file, _ in self._named(source.path or "")]

    def _rows(self, source: Source) -> Iterator[Row]:
        for row in self.examined(source):
            if isinstance(row, ConfigError):
                raise row
            yield row

    def examined(self, source: Source) -> Iterator[Row | ConfigError]:
        """The rows of a source as they are trained on; in the place of one that is wrong, why. Raises ConfigError where
        nothing more can be read.
        """
        for place, row in self._raw(source):
            try:
                yield row if isinstance(row, ConfigError) else self._good(row, place)
            except ConfigError as error:
                yield error

    def _good(self, row: Mapping[str, Any], place: str) -> Row:
        renamed = {self._columns.get(name, name): value for name, value in row.items()}
        if len(renamed) < len(row):
            raise ConfigError(f"{place}: data.columns gives two columns one name, of {', '.join(map(str, row))}")
        if not self._told.kind:
            self._told = _Told(kind_of(renamed, self._kinds, place))
        good = checked(renamed, self._told.kind, place)
        self._require_alike(good, place)
        return good

    def _require_alike(self, row: Row, place: str) -> None:
        """Text and messages, and whether there is a prompt, are told once for all rows, by the first."""
        said = {name: value for name, value in row.items() if name in COLUMNS[self.kind] and name != "label"}
        shape = "text" if all(isinstance(value, str) for value in said.values()) else "messages"
        if not self._told.shape:
            self._told = _Told(self._told.kind, shape, list(row))
        if shape != self._told.shape:
            raise ConfigError(f"{place}: {' and '.join(said)} are {shape}, in the rows before {self._told.shape}")
        if odd := row.keys() ^ self._told.names:
            has = "has a" if odd <= row.keys() else "has no"
            raise ConfigError(f"{place}: {has} {', '.join(odd)}, other than the rows before; give it in all or in none")

    def _raw(self, source: Source) -> Iterator[tuple[str, Mapping[str, Any] | ConfigError]]:
        if source.reasoning_gym is not None:
            for number, task in enumerate(reasoning_gym.rows(source, self._seed), 1):
                yield f"{source.reasoning_gym} task {number}", task
        elif (source.path or "").startswith("hf://"):
            for number, row in enumerate(hub.dataset_rows(source, hub.dataset_commit(source, self._pins)), 1):
                yield f"{source.path} row {number}", row
        else:
            for file, name in self._named(source.path or ""):
                yield from files.read(file, name)

    def _named(self, path: str) -> list[tuple[Path, str]]:
        """The files of a source, each with its name for people."""
        if path not in self._found:
            self._found[path] = bucket_rows.fetched(path) if bucket_rows.is_in_a_bucket(path) else self._files(path)
        return self._found[path]

    def _files(self, path: str) -> list[tuple[Path, str]]:
        whole = self._base / Path(path).expanduser()
        if whole.is_file():
            hits = [whole]
        elif whole.is_dir():
            hits = [whole / name for name in rows_in(whole)]
            if not hits:
                raise ConfigError(f"{path}: the folder holds no file of rows ({', '.join(ROWS)})")
        else:
            names = sorted(glob.glob(str(Path(path).expanduser()), root_dir=self._base, recursive=True))
            hits = [self._base / name for name in names if (self._base / name).is_file()]
            if not hits:
                raise ConfigError(f"data: there is no file {path}")
        return [(file, str(file.relative_to(self._base) if file.is_relative_to(self._base) else file)) for file in hits]

"""The rows of a run: read, weighted and split, in an order that depends only on the seed.

`trainers.data.row_formats` defines what a row is and what is wrong with one. Large sources are read once on a host: the
next attempt there finds them by their content and by the settings they are read with.
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

from runfile import ROW_SUFFIXES, DataSection, DataSource, Split, list_row_files
from storage.manifest import hash_file
from trainers.data import bucket_rows, cache, files, reasoning_gym
from trainers.data.disk_rows import DiskRows, concatenate_rows, find_cached_rows, gather_rows, select_rows
from trainers.data.row_formats import (
    COLUMNS,
    Row,
    check_row,
    describe_columns,
    detect_kind,
    readable_kinds,
    trained_kind,
)
from trainers.errors import ConfigError
from trainers.models import hub

_FORMAT_VERSION = 1  #: must change when the same files and settings give other rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind, with the columns of that kind only."""

    kind: str
    rows: Sequence[Row]
    source_digest: str = ""  #: for rows on disk: a digest of their sources and of how they were read

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of every row."""
        return tuple(self.rows[0]) if self.rows else ()

    @property
    def digest(self) -> str:
        """A digest of the rows in their order."""
        return self.source_digest or _digest_rows(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class _SourceRows:
    """The rows of one source."""

    source: DataSource
    rows: Sequence[Row]
    source_digest: str = ""

    def describe(self) -> list[Any]:
        """Return what decides this source's part of the mix, as JSON values."""
        return [self.source_digest or _digest_rows(self.rows), self.source.weight]


def load_rows(
    data: DataSection, *, seed: int, kinds: Sequence[str], base: Path, pins: Mapping[str, str] | None = None
) -> tuple[Rows, Rows | None]:
    """Return the rows to train on and the held-out rows (None without `data.eval`). `pins` holds the commits of data
    sets on the Hub (see `trainers.models.hub`). Raises ConfigError, which names file and line.
    """
    reader = RowReader(data, seed, kinds, base, pins or {})
    parts = reader.read_sources(data.train, "data.train")
    how: list[Any] = [seed, None, []]
    held_out: Rows | None = None
    if isinstance(data.eval, Split):
        how[1] = data.eval.split
        kept, rows = split_sources(parts, data.eval.split, seed)
        held_out = Rows(reader.kind, rows)
    elif data.eval is not None:
        held = reader.read_sources(data.eval, "data.eval")
        apart = [part for part in held if part.source.disjoint_from]
        how[2] = [part.describe() for part in apart]
        kept = _remove_held_out(parts, apart) if apart else parts
        held_out = Rows(reader.kind, mix_sources(held, seed))
    else:
        kept = parts
    mixed = mix_sources(kept, seed)
    made_of = (
        _digest_rows([{"how": how, "of": [part.describe() for part in parts]}]) if isinstance(mixed, DiskRows) else ""
    )
    train = Rows(reader.kind, mixed, made_of)
    for name, rows_ in (("data.train", train), ("data.eval", held_out)):
        if rows_ is not None and not rows_.rows:
            raise ConfigError(f"{name}: no rows are left")
    return train, held_out


def locate_row(
    row: Row, data: DataSection, *, seed: int, kinds: Sequence[str], base: Path, pins: Mapping[str, str]
) -> str | None:
    """Return where a row stands that `load_rows` has read, e.g. "rows.jsonl:7"; None when it stands nowhere any more.
    It reads the sources again.
    """
    reader = RowReader(data, seed, kinds, base, pins)
    held_out = () if data.eval is None or isinstance(data.eval, Split) else data.eval
    for source in (*data.train, *held_out):
        for place, found in reader.read_places(source):
            if found == row:
                return place
    return None


def _digest_rows(rows: Iterable[Any]) -> str:
    """Return a SHA-256 of the rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
    return f"sha256:{digest.hexdigest()}"


def _remove_held_out(parts: list[_SourceRows], held: Sequence[_SourceRows]) -> list[_SourceRows]:
    """Return the parts without the rows whose prompt a held-out row has too."""
    asked = {_prompt_key(row) for part in held for row in part.rows}
    return [
        replace(
            part, rows=select_rows(part.rows, [at for at, row in enumerate(part.rows) if _prompt_key(row) not in asked])
        )
        for part in parts
    ]


def _prompt_key(row: Row) -> str:
    """Return the row's prompt as a text that can be compared."""
    return json.dumps(row.get("prompt", row), sort_keys=True)


def mix_sources(parts: Iterable[_SourceRows], seed: int) -> Sequence[Row]:
    """Return the rows of all parts, one part after the other, each `weight` times: 2 is every row twice, 0.5 half of
    the rows, chosen by seed.
    """
    mixed: list[Sequence[Row]] = []
    for index, part in enumerate(parts):
        whole, rest = divmod(part.source.weight, 1)
        mixed += [part.rows] * int(whole)
        if rest:
            chosen = _choose_rows(len(part.rows), round(rest * len(part.rows)), f"mix:{seed}:{index}")
            mixed.append(select_rows(part.rows, np.flatnonzero(chosen)))
    return concatenate_rows(mixed)


def split_sources(parts: Sequence[_SourceRows], share: float, seed: int) -> tuple[list[_SourceRows], Sequence[Row]]:
    """Return the parts without the held-out rows, and the held-out rows: `share` of each part. The split comes before
    the weights, so no row is on both sides.
    """
    kept: list[_SourceRows] = []
    held: list[Sequence[Row]] = []
    for index, part in enumerate(parts):
        count = max(round(share * len(part.rows)), 1 if len(part.rows) > 1 else 0)
        chosen = _choose_rows(len(part.rows), count, f"split:{seed}:{index}")
        held.append(select_rows(part.rows, np.flatnonzero(chosen)))
        kept.append(replace(part, rows=select_rows(part.rows, np.flatnonzero(~chosen))))
    return kept, concatenate_rows(held)


def _choose_rows(total: int, count: int, salt: str) -> NDArray[np.bool_]:
    """Choose `count` of `total` rows by hash, which is the same in every Python, unlike `random`. Return a mask,
    (total,).
    """
    chosen = np.zeros(total, dtype=bool)
    if count:
        ranks = (hashlib.sha256(f"{salt}:{number}".encode()).digest()[:8] for number in range(total))
        order = np.fromiter((int.from_bytes(rank) for rank in ranks), np.uint64, total)
        chosen[np.argsort(order, kind="stable")[:count]] = True
    return chosen


@dataclass(frozen=True, slots=True)
class _RowFormat:
    """What the rows read so far fix for all rows."""

    kind: str = ""  #: the kind in the files
    shape: str = ""  #: text or messages
    names: Sequence[str] = ()  #: the first row's columns


class RowReader:
    """Reads the sources of one data section. The first row decides the kind where the run file does not."""

    def __init__(self, data: DataSection, seed: int, kinds: Sequence[str], base: Path, pins: Mapping[str, str]) -> None:
        self._seed, self._pins, self._columns, self._base = seed, pins, data.columns, base
        self._kinds = readable_kinds(kinds)
        self._files_of_path: dict[str, list[tuple[Path, str]]] = {}
        self._format = _RowFormat("" if data.format == "auto" else data.format)
        if self._format.kind and self._format.kind not in self._kinds:
            raise ConfigError(
                f"data.format: {self._format.kind} cannot be used with this method; it takes {', '.join(self._kinds)} "
                f"({describe_columns(self._kinds)})"
            )

    @property
    def kind(self) -> str:
        """The kind of the rows that were read."""
        return trained_kind(self._format.kind)

    def read_sources(self, sources: Sequence[DataSource], name: str) -> list[_SourceRows]:
        """Return the rows of each source. Raises ConfigError when there are none."""
        parts = [self._read_source(source) for source in sources]
        if not any(part.rows for part in parts):
            raise ConfigError(
                f"{name}: {', '.join(str(source.path or source.reasoning_gym) for source in sources)} has no rows"
            )
        return parts

    def _read_source(self, source: DataSource) -> _SourceRows:
        """Return the rows of one source, from the cache where they are there."""
        if source.reasoning_gym is not None:
            return _SourceRows(source, list(self._require_rows(source)))
        asked = [
            _FORMAT_VERSION,
            self._describe_content(source),
            asdict(self._format),
            self._kinds,
            dict(self._columns),
        ]
        folder = cache.entry_folder("rows", *asked)
        if (before := find_cached_rows(folder)) is not None:
            self._format = _RowFormat(**before[1])
            return _SourceRows(source, before[0], folder.name)
        rows = gather_rows(self._require_rows(source), folder, lambda: asdict(self._format))
        return _SourceRows(source, rows, folder.name if isinstance(rows, DiskRows) else "")

    def _describe_content(self, source: DataSource) -> Any:
        """Return what decides which rows a source has, as JSON values."""
        if (source.path or "").startswith("hf://"):
            return [source.path, source.name, source.split, hub.resolve_dataset(source, self._pins)]
        return [[hash_file(file)[0], *file.suffixes[-2:]] for file, _ in self._find_files(source.path or "")]

    def _require_rows(self, source: DataSource) -> Iterator[Row]:
        """Yield the rows of a source. Raises ConfigError for the first that is wrong."""
        for row in self.check_rows(source):
            if isinstance(row, ConfigError):
                raise row
            yield row

    def check_rows(self, source: DataSource) -> Iterator[Row | ConfigError]:
        """Yield the rows of a source as they are trained on, and for a row that is wrong its error. Raises ConfigError
        where nothing more can be read.
        """
        return (row for _, row in self.read_places(source))

    def read_places(self, source: DataSource) -> Iterator[tuple[str, Row | ConfigError]]:
        """Yield what `check_rows` yields, each with its place: file and line, or the number in its source."""
        for place, row in self._read_raw(source):
            try:
                yield place, row if isinstance(row, ConfigError) else self._check(row, place)
            except ConfigError as error:
                yield place, error

    def _check(self, row: Mapping[str, Any], place: str) -> Row:
        """Return a row with renamed columns, in the form that is trained on. Raises ConfigError for a row that is
        wrong.
        """
        renamed = {self._columns.get(name, name): value for name, value in row.items()}
        if len(renamed) < len(row):
            raise ConfigError(f"{place}: data.columns gives two columns one name, of {', '.join(map(str, row))}")
        if not self._format.kind:
            self._format = _RowFormat(detect_kind(renamed, self._kinds, place))
        good = check_row(renamed, self._format.kind, place)
        self._require_same_shape(good, place)
        return good

    def _require_same_shape(self, row: Row, place: str) -> None:
        """Raise ConfigError when a row differs from the first in a way that trainers look for in the first row only:
        text or messages, with or without a prompt.
        """
        said = {name: value for name, value in row.items() if name in COLUMNS[self.kind] and name != "label"}
        shape = "text" if all(isinstance(value, str) for value in said.values()) else "messages"
        if not self._format.shape:
            self._format = _RowFormat(self._format.kind, shape, list(row))
        if shape != self._format.shape:
            raise ConfigError(f"{place}: {' and '.join(said)} are {shape}, but {self._format.shape} in the rows before")
        if odd := row.keys() ^ self._format.names:
            has = "has a" if odd <= row.keys() else "has no"
            raise ConfigError(
                f"{place}: {has} {', '.join(odd)}, unlike the rows before it; all rows must have it, or none"
            )

    def _read_raw(self, source: DataSource) -> Iterator[tuple[str, Mapping[str, Any] | ConfigError]]:
        """Yield each row of a source as it is stored, with its place for errors."""
        if source.reasoning_gym is not None:
            for number, task in enumerate(reasoning_gym.generate_rows(source, self._seed), 1):
                yield f"{source.reasoning_gym} task {number}", task
        elif (source.path or "").startswith("hf://"):
            for number, row in enumerate(hub.load_dataset_rows(source, hub.resolve_dataset(source, self._pins)), 1):
                yield f"{source.path} row {number}", row
        else:
            for file, name in self._find_files(source.path or ""):
                yield from files.read_rows(file, name)

    def _find_files(self, path: str) -> list[tuple[Path, str]]:
        """Return the files of a path, each with its name for errors."""
        if path not in self._files_of_path:
            self._files_of_path[path] = (
                bucket_rows.fetch_objects(path) if bucket_rows.is_bucket_path(path) else self._find_local_files(path)
            )
        return self._files_of_path[path]

    def _find_local_files(self, path: str) -> list[tuple[Path, str]]:
        """Return the files of a path on this host: a file, a folder of files, or a glob."""
        whole = self._base / Path(path).expanduser()
        if whole.is_file():
            hits = [whole]
        elif whole.is_dir():
            hits = [whole / name for name in list_row_files(whole)]
            if not hits:
                raise ConfigError(f"{path}: the folder holds no file of rows ({', '.join(ROW_SUFFIXES)})")
        else:
            names = sorted(glob.glob(str(Path(path).expanduser()), root_dir=self._base, recursive=True))
            hits = [self._base / name for name in names if (self._base / name).is_file()]
            if not hits:
                raise ConfigError(f"data: there is no file {path}")
        return [(file, str(file.relative_to(self._base) if file.is_relative_to(self._base) else file)) for file in hits]

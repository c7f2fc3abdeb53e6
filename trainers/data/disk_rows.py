"""Rows in a file of this host, where they are too many for memory. They are read when they are needed.

The file is an Arrow stream that the data sets library maps into memory. What that library makes of the rows (tokens)
lies beside the file, and the next attempt on this host finds it there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, concatenate_datasets
from numpy.typing import NDArray

from trainers.data import cache
from trainers.data.row_formats import Row
from trainers.errors import ConfigError

MEMORY_LIMIT = 64 << 20  #: bytes of text above which rows are kept on disk
_ROWS, _ABOUT = "rows.arrow", "about.json"
_BATCH_ROWS = 1000  #: rows
_BATCH_BYTES = 8 << 20


class DiskRows(Sequence[Row]):
    """Rows that lie in files. `dataset` is what a library trainer takes."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> "DiskRows": ...
    def __getitem__(self, at: int | slice) -> "Row | DiskRows":
        if isinstance(at, slice):
            return DiskRows(self.dataset.select(range(*at.indices(len(self)))))
        row: Row = self.dataset[at]
        return row

    def __iter__(self) -> Iterator[Row]:
        return iter(self.dataset)


def gather_rows(rows: Iterator[Row], folder: Path, about: Callable[[], Mapping[str, Any]]) -> Sequence[Row]:
    """Return the rows as a list, or as DiskRows in `folder` where they are too large for one. Only then does the folder
    exist, and `about` is stored in it once all rows have been read.

    Raises what `rows` raises, ConfigError when a column holds values of different types, HostError when the disk fails.
    """
    kept: list[Row] = []
    size = 0
    for row in rows:
        kept.append(row)
        size += _estimate_size(row)
        if size > MEMORY_LIMIT:
            with cache.new_entry(folder) as draft:
                _write_rows(chain(_drain(kept), rows), draft / _ROWS)
                with cache.disk_errors(draft / _ABOUT):
                    (draft / _ABOUT).write_text(json.dumps(about()))
            return _open_rows(folder)
    return kept


def find_cached_rows(folder: Path) -> tuple[DiskRows, dict[str, Any]] | None:
    """Return what `gather_rows` left in the folder and what `about` returned, or None."""
    if not (folder / _ABOUT).is_file():
        return None
    return _open_rows(folder), json.loads((folder / _ABOUT).read_text())


def _open_rows(folder: Path) -> DiskRows:
    """Open the rows in the folder."""
    return DiskRows(Dataset.from_file(str(folder / _ROWS)))


def select_rows(rows: Sequence[Row], numbers: "Sequence[int] | NDArray[np.int64]") -> Sequence[Row]:
    """Return the rows with these numbers."""
    return (
        DiskRows(rows.dataset.select(numbers)) if isinstance(rows, DiskRows) else [rows[number] for number in numbers]
    )


def concatenate_rows(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """Return all rows of the parts, one part after the other."""
    if not any(isinstance(part, DiskRows) for part in parts):
        return list(chain.from_iterable(parts))
    sets = [as_dataset(part) for part in parts if len(part)]
    if len(sets) == 1:
        return DiskRows(sets[0])
    schema = pa.unify_schemas([each.features.arrow_schema for each in sets], promote_options="permissive")
    features = Features.from_arrow_schema(schema)
    return DiskRows(concatenate_datasets([each if each.features == features else each.cast(features) for each in sets]))


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """Return the rows as a library trainer takes them."""
    return rows.dataset if isinstance(rows, DiskRows) else Dataset.from_list(list(rows))


def as_stream(rows: Sequence[Row], seed: int) -> IterableDataset:
    """Return the rows as a stream that a library trainer tokenizes while it trains. The order depends on the seed and
    is the same in every epoch, since trainers do not shuffle a stream.
    """
    stream: IterableDataset = as_dataset(rows).shuffle(seed=seed).to_iterable_dataset()
    return stream


def _drain(rows: list[Row]) -> Iterator[Row]:
    """Yield the rows and drop each from the list."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write an Arrow stream. The type of a column becomes known row by row; when it widens, the file is rewritten."""
    number, widened = 0, 0
    into = _StreamWriter(path)
    for batch in _split_into_batches(rows):
        try:
            table = pa.Table.from_pydict({name: [row[name] for row in batch] for name in batch[0]})
            schema = pa.unify_schemas([into.schema or table.schema, table.schema], promote_options="permissive")
        except (pa.ArrowException, OverflowError) as error:
            said = " ".join(str(error).split())
            raise ConfigError(
                f"data: rows {number + 1} to {number + len(batch)} have no type in common: {said}"
            ) from error
        if into.schema is not None and schema != into.schema:
            widened += 1
            into = into.rewrite_as(path.with_name(f"{widened}-{_ROWS}"), schema)
        into.add(table.cast(schema))
        number += len(batch)
    into.close(path)


class _StreamWriter:
    """An Arrow stream that is being written."""

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self.schema = schema
        self._path = path
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        with cache.disk_errors(self._path):
            if self._writer is None:
                self.schema = table.schema
                self._writer = pa.ipc.new_stream(str(self._path), table.schema)
            self._writer.write_table(table)

    def rewrite_as(self, path: Path, schema: pa.Schema) -> "_StreamWriter":
        """Rewrite the same rows with a wider schema, in a new file that replaces this one."""
        self.close(self._path)
        wider = _StreamWriter(path, schema)
        with pa.ipc.open_stream(pa.OSFile(str(self._path))) as before:
            for batch in before:
                wider.add(pa.Table.from_batches([batch]).cast(schema))
        self._path.unlink()
        return wider

    def close(self, path: Path) -> None:
        with cache.disk_errors(path):
            self._writer.close()
            self._path.rename(path)


def _split_into_batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield batches of limited length and size."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += _estimate_size(row)
        if len(batch) == _BATCH_ROWS or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _estimate_size(value: Any) -> int:
    """Return roughly how many bytes of text a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_estimate_size, value.values()))
    return sum(map(_estimate_size, value)) if isinstance(value, list) else 8

"""Rows of a file, whatever kind of file it is: told by how it begins, and where that says nothing by its name.

| kind | rows |
| --- | --- |
| JSON lines | a row for each line; blank lines are passed over |
| `.json` | an array of rows (lines will do too) |
| `.csv`, `.tsv` | the first line names the columns; all values are text, but `true` and `false` in a column `label` |
| Parquet, Arrow, Feather | as they are |

Each of the first three may be packed with gzip or zstd. Text is UTF-8, with a byte order mark or without.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet

from trainers.data.row_formats import Row, shown
from trainers.errors import ConfigError

#: How packed files begin.
_PACKED: Mapping[bytes, str] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
#: How files begin that are not read.
_OTHER: Mapping[bytes, str] = {
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"FEA1": "Feather 1",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\xd0\xcf\x11\xe0": "Excel",
    b"SQLite": "SQLite",
}
_PARQUET, _ARROW, _STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_MARK = b"\xef\xbb\xbf"
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_LARGEST_CELL = 1 << 30
_AT_ONCE = 1000  #: rows

#: Where a row stands, for people, and the row, or what is wrong with it where the next ones can be read all the same.
Numbered = Iterator[tuple[str, Row | ConfigError]]


def read(path: Path, name: str) -> Numbered:
    """The rows of a file that errors call `name`. Raises ConfigError where nothing more can be read, and why."""
    with path.open("rb") as file:
        begins = file.read(8)
    if begins.startswith(_PARQUET):
        yield from _tables(name, lambda: pa.parquet.ParquetFile(path).iter_batches(_AT_ONCE))
    elif begins.startswith(_ARROW):
        yield from _tables(name, lambda: _record_batches(pa.ipc.open_file(pa.memory_map(str(path)))))
    elif begins.startswith(_STREAM):
        yield from _tables(name, lambda: iter(pa.ipc.open_stream(pa.memory_map(str(path)))))
    else:
        packing = next((kind for magic, kind in _PACKED.items() if begins.startswith(magic)), None)
        with _unpacked(path, name, packing) as content:
            yield from _text(content, name, Path(path.stem if packing else path.name).suffix.lower())


def _record_batches(reader: Any) -> Iterator[Any]:
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _tables(name: str, opened: Any) -> Numbered:
    number = 0
    try:
        for batch in opened():
            for row in batch.to_pylist():
                number += 1
                yield f"{name} row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{name}: cannot be read after row {number} ({_line(error)})") from error


@contextmanager
def _unpacked(path: Path, name: str, packing: str | None) -> Iterator[IO[bytes]]:
    if packing is None:
        with path.open("rb") as file:
            yield file
        return
    try:
        with pa.input_stream(str(path), compression=packing) as stream:
            yield cast("IO[bytes]", io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{name}: cannot be unpacked ({_line(error)})") from error


def _text(content: IO[bytes], name: str, suffix: str) -> Numbered:
    """Lines, an array, or a table of text; of what is packed this is known only now."""
    first = content.readline()
    begins = first.removeprefix(_MARK)
    if kind := next((kind for magic, kind in _OTHER.items() if begins.startswith(magic)), None):
        raise ConfigError(f"{name}: is {kind}, which is not read; {_WRITE}")
    if begins.startswith((_PARQUET, _ARROW, _STREAM)):
        raise ConfigError(f"{name}: is a packed table; unpack it")
    lines = _joined(begins, content)
    if suffix in (".csv", ".tsv"):
        yield from _table(lines, name, "\t" if suffix == ".tsv" else ",")
    elif begins.lstrip().startswith(b"[") and suffix == ".json":
        yield from _array(b"".join(lines), name)
    else:
        yield from _lines(lines, name)


_WRITE = "rows are read from JSON lines, CSV, Parquet and Arrow files, the first two packed with gzip or zstd too"


def _joined(first: bytes, rest: IO[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _lines(lines: Iterator[bytes], name: str) -> Numbered:
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{name}:{number}"
            yield place, _of_line(line, place)


def _of_line(line: bytes, place: str) -> Row | ConfigError:
    try:
        found = _parsed(line, place, "; each line is one object")
    except ConfigError as error:
        return error
    return _row(found, place)


def _array(content: bytes, name: str) -> Numbered:
    rows = _parsed(content, name, "")
    for number, row in enumerate(rows, 1):
        yield f"{name} row {number}", _row(row, f"{name} row {number}")


def _parsed(text: bytes, place: str, hint: str) -> Any:
    try:
        found = json.loads(text.decode())
        if _HALF_PAIR.search(text):  # JSON can say half a character; no tokenizer can read it
            json.dumps(found, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"{place}: not UTF-8 text ({error.reason})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON ({error}){hint}") from error
    return found


def _row(row: Any, place: str) -> Row | ConfigError:
    if isinstance(row, dict):
        return row
    return ConfigError(f'{place}: a row is an object like {{"text": "…"}}, found {shown(row)}')


def _table(lines: Iterator[bytes], name: str, delimiter: str) -> Numbered:
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(_decoded(lines, name), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, [])
        if twice := {column for column in columns if columns.count(column) > 1}:
            raise ConfigError(f"{name}:1: two columns are called {', '.join(sorted(twice))}")
        for cells in reader:
            place = f"{name}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) == len(columns):
                yield place, {column: _cell(column, cell) for column, cell in zip(columns, cells, strict=True)}
            else:
                said = f"{place}: {len(cells)} values, and {len(columns)} columns in the first line"
                yield place, ConfigError(said)
    except csv.Error as error:
        raise ConfigError(f"{name}:{reader.line_num}: not a table of values ({error})") from error


def _cell(column: str, cell: str) -> Any:
    return {"true": True, "false": False}.get(cell.strip().lower(), cell) if column == "label" else cell


def _decoded(lines: Iterator[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}:{number}: not UTF-8 text ({error.reason})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

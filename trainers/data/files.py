"""Rows of one file of any supported format, recognised by its first bytes, else by its name.

| format | rows |
| --- | --- |
| JSON lines | one row on each line; blank lines are skipped |
| `.json` | an array of rows (or JSON lines) |
| `.csv`, `.tsv` | the first line names the columns; all values are text, but `true` and `false` in a column `label` |
| Parquet, Arrow, Feather | as they are |

The first three may be compressed with gzip or zstd. Text is UTF-8, with or without a byte order mark.
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

from trainers.data.row_formats import Row, format_value
from trainers.errors import ConfigError

#: The first bytes of compressed files.
_COMPRESSION: Mapping[bytes, str] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
#: The first bytes of files that cannot be read.
_UNSUPPORTED: Mapping[bytes, str] = {
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
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_CELL_BYTES = 1 << 30
_BATCH_ROWS = 1000  #: rows

#: The place of each row, for messages, and the row; or its error where the next rows can still be read.
PlacedRows = Iterator[tuple[str, Row | ConfigError]]


def read_rows(path: Path, name: str) -> PlacedRows:
    """Yield the rows of a file that errors call `name`. Raises ConfigError where nothing more can be read."""
    with path.open("rb") as file:
        begins = file.read(8)
    if begins.startswith(_PARQUET):
        yield from _read_batches(name, lambda: pa.parquet.ParquetFile(path).iter_batches(_BATCH_ROWS))
    elif begins.startswith(_ARROW):
        yield from _read_batches(name, lambda: _record_batches(pa.ipc.open_file(pa.memory_map(str(path)))))
    elif begins.startswith(_STREAM):
        yield from _read_batches(name, lambda: iter(pa.ipc.open_stream(pa.memory_map(str(path)))))
    else:
        compression = next((kind for magic, kind in _COMPRESSION.items() if begins.startswith(magic)), None)
        with _open_decompressed(path, name, compression) as content:
            yield from _read_text(content, name, Path(path.stem if compression else path.name).suffix.lower())


def _record_batches(reader: Any) -> Iterator[Any]:
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _read_batches(name: str, opened: Any) -> PlacedRows:
    number = 0
    try:
        for batch in opened():
            for row in batch.to_pylist():
                number += 1
                yield f"{name} row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{name}: cannot be read after row {number} ({_in_one_line(error)})") from error


@contextmanager
def _open_decompressed(path: Path, name: str, compression: str | None) -> Iterator[IO[bytes]]:
    if compression is None:
        with path.open("rb") as file:
            yield file
        return
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            yield cast("IO[bytes]", io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{name}: cannot be decompressed ({_in_one_line(error)})") from error


def _read_text(content: IO[bytes], name: str, suffix: str) -> PlacedRows:
    """Yield rows from JSON lines, an array, or a table of text. The format of compressed files becomes known
    only here.
    """
    first = content.readline()
    begins = first.removeprefix(_BYTE_ORDER_MARK)
    if kind := next((kind for magic, kind in _UNSUPPORTED.items() if begins.startswith(magic)), None):
        raise ConfigError(f"{name}: is {kind}, which cannot be read; {_SUPPORTED}")
    if begins.startswith((_PARQUET, _ARROW, _STREAM)):
        raise ConfigError(f"{name}: is a compressed table; decompress it")
    lines = _prepend_line(begins, content)
    if suffix in (".csv", ".tsv"):
        yield from _read_table(lines, name, "\t" if suffix == ".tsv" else ",")
    elif begins.lstrip().startswith(b"[") and suffix == ".json":
        yield from _read_array(b"".join(lines), name)
    else:
        yield from _read_lines(lines, name)


_SUPPORTED = (
    "rows are read from JSON lines, CSV, Parquet and Arrow files, the first two also compressed with gzip or zstd"
)


def _prepend_line(first: bytes, rest: IO[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _read_lines(lines: Iterator[bytes], name: str) -> PlacedRows:
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{name}:{number}"
            yield place, _parse_line(line, place)


def _parse_line(line: bytes, place: str) -> Row | ConfigError:
    try:
        found = _parse_json(line, place, "; each line must be one object")
    except ConfigError as error:
        return error
    return _require_object(found, place)


def _read_array(content: bytes, name: str) -> PlacedRows:
    rows = _parse_json(content, name, "")
    for number, row in enumerate(rows, 1):
        yield f"{name} row {number}", _require_object(row, f"{name} row {number}")


def _parse_json(text: bytes, place: str, hint: str) -> Any:
    try:
        found = json.loads(text.decode())
        if _LONE_SURROGATE.search(text):  # JSON can say half a character; no tokenizer can read it
            json.dumps(found, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"{place}: not UTF-8 text ({error.reason})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON ({error}){hint}") from error
    return found


def _require_object(row: Any, place: str) -> Row | ConfigError:
    if isinstance(row, dict):
        return row
    return ConfigError(f'{place}: a row must be an object like {{"text": "…"}}, found {format_value(row)}')


def _read_table(lines: Iterator[bytes], name: str, delimiter: str) -> PlacedRows:
    csv.field_size_limit(_MAX_CELL_BYTES)
    reader = csv.reader(_decode_lines(lines, name), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, [])
        if twice := {column for column in columns if columns.count(column) > 1}:
            raise ConfigError(f"{name}:1: two columns are named {', '.join(sorted(twice))}")
        for cells in reader:
            place = f"{name}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) == len(columns):
                yield place, {column: _parse_cell(column, cell) for column, cell in zip(columns, cells, strict=True)}
            else:
                said = f"{place}: {len(cells)} values, and {len(columns)} columns in the first line"
                yield place, ConfigError(said)
    except csv.Error as error:
        raise ConfigError(f"{name}:{reader.line_num}: not a table of values ({error})") from error


def _parse_cell(column: str, cell: str) -> Any:
    return {"true": True, "false": False}.get(cell.strip().lower(), cell) if column == "label" else cell


def _decode_lines(lines: Iterator[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}:{number}: not UTF-8 text ({error.reason})") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

"""Files of rows: every format gives the same rows, and errors name their place."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from runfile import DataSection, find_inputs, list_row_files, parse_run_file
from tests.trainers.deferred import deferred_imports
from trainers.data import files
from trainers.errors import ConfigError

with deferred_imports():
    from trainers.data import loading

ROWS = [{"text": "one, “two”"}, {"text": 'a "b"\nc'}, {"text": ""}, {"text": "ende, é"}]
CHAT = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": f"ho {n}"}]} for n in range(3)
]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def table(rows: list[Any], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def stream(rows: list[Any]) -> bytes:
    """Write rows as the data sets library keeps its cache."""
    sink, whole = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return bytes(sink.getvalue())


def parquet(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return bytes(sink.getvalue())


def feather(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pa.feather.write_feather(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "rows.jsonl": lines,
    "rows.txt": lines,
    "rows.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "lines.json": lines,
    "rows.csv": table,
    "rows.tsv": lambda rows: table(rows, "\t"),
    "rows.parquet": parquet,
    "rows.arrow": stream,
    "rows.feather": feather,
    "without-a-name-for-it": parquet,
    "rows.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "rows.jsonl.zst": lambda rows: zstd(lines(rows)),
    "rows.csv.gz": lambda rows: gzip.compress(table(rows)),
    "named-wrongly.jsonl": lambda rows: gzip.compress(lines(rows)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_has_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](ROWS))
    assert [row for _, row in files.read_rows(tmp_path / name, name)] == ROWS


@pytest.mark.parametrize("name", [name for name in WRITERS if "csv" not in name and "tsv" not in name])
def test_dialogues_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](CHAT))
    assert [row for _, row in files.read_rows(tmp_path / name, name)] == CHAT


def test_labels_of_a_table_are_true_or_false(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion,label\na,true,true\nb,c,False\n")
    section = DataSection.model_validate({"train": "rows.csv"})
    train, _ = loading.load_rows(section, seed=1, kinds=("unpaired_preference",), base=tmp_path)
    assert [(row["completion"], row["label"]) for row in train.rows] == [("true", True), ("c", False)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_marks_and_ends_of_lines_of_another_system(tmp_path: Path, name: str) -> None:
    text = WRITERS[name]([{"text": "a"}, {"text": "b"}]).decode().replace("\r\n", "\n").replace("\n", "\r\n")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [row for _, row in files.read_rows(tmp_path / name, name)] == [{"text": "a"}, {"text": "b"}]


def test_a_huge_line_is_read(tmp_path: Path) -> None:
    huge = [{"text": "x" * (20 << 20)}]
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_bytes(WRITERS[name](huge))
        assert [row for _, row in files.read_rows(tmp_path / name, name)] == huge


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "rows.jsonl:2: not UTF-8 text"),
        ("rows.csv", b"text\na\ncaf\xe9\n", "rows.csv:3: not UTF-8 text"),
        (
            "rows.jsonl",
            '{"text": "a"}'.encode("utf-16"),
            "rows.jsonl: is UTF-16 text, which cannot be read; rows are read",
        ),
        ("rows.zip", b"PK\x03\x04....", "rows.zip: is zip, which cannot be read"),
        ("rows.jsonl.xz", b"\xfd7zXZ\x00..", "rows.jsonl.xz: is xz, which cannot be read"),
        ("rows.jsonl", b'{"text": "a"}\n[1]\n', "rows.jsonl:2: a row must be an object"),
        ("rows.json", b'[{"text": "a"}, 3]', "rows.json row 2: a row must be an object"),
        ("rows.json", b'[{"text": "a"},', "rows.json: not JSON"),
        ("rows.csv", b"a,b\n1,2\n1,2,3\n", "rows.csv:3: 3 values, and 2 columns in the first line"),
        ("rows.csv", b"a,a\n1,2\n", "rows.csv:1: two columns are named a"),
        ("rows.csv", b'a\n"b\n', "rows.csv:2: not a table of values"),
        ("rows.parquet", b"PAR1" + b"\0" * 40, "rows.parquet: cannot be read after row 0"),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 10**5, mtime=0)[:-200],
            "rows.jsonl.gz: cannot be decompressed",
        ),
        ("rows.gz", gzip.compress(b"PAR1....", mtime=0), "rows.gz: is a compressed table; decompress it"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    section = DataSection.model_validate({"train": name, "columns": {"a": "text"}})
    with pytest.raises(ConfigError) as wrong:
        loading.load_rows(section, seed=1, kinds=("text",), base=tmp_path)
    assert str(wrong.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"torn\n{"text": "caf\xe9"}\n[1]\n{"text": "b"}\n', [":2: ", ":3: ", ":4: "]),
        ("rows.json", b'[{"text": "a"}, 3, {"text": "b"}]', [" row 2: "]),
        ("rows.csv", b"text\na\n1,2\nb\n", [":3: "]),
    ],
)
def test_reading_goes_on_past_what_is_no_row(tmp_path: Path, name: str, content: bytes, wrong: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    found = [row for _, row in files.read_rows(tmp_path / name, name)]
    assert [row for row in found if isinstance(row, dict)] == [{"text": "a"}, {"text": "b"}]
    said = [str(error) for error in found if isinstance(error, ConfigError)]
    assert all(each.startswith(name + place) for each, place in zip(said, wrong, strict=True))


def test_wrong_types_halfway_are_named_with_their_row(tmp_path: Path) -> None:
    rows = [*CHAT, {"messages": [{"role": "user", "content": None}]}]
    (tmp_path / "rows.parquet").write_bytes(parquet(rows))
    section = DataSection.model_validate({"train": "rows.parquet"})
    with pytest.raises(ConfigError, match=r"^rows\.parquet row 4: messages: message 1 must be .* found .*null"):
        loading.load_rows(section, seed=1, kinds=("chat",), base=tmp_path)


def test_a_folder_is_its_files_of_rows_and_travels_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    for name in ("b.jsonl.gz", "more/c.csv", "a.parquet"):
        (folder / name).write_bytes(WRITERS[f"rows{''.join(Path(name).suffixes)}"]([{"text": name}]))
    for other in ("README.md", ".hidden.jsonl"):
        (folder / other).write_text("no rows")
    assert list_row_files(folder) == ["a.parquet", "b.jsonl.gz", "more/c.csv"]
    section = DataSection.model_validate({"train": "rows"})
    train, _ = loading.load_rows(section, seed=1, kinds=("text",), base=tmp_path)
    assert [row["text"] for row in train.rows] == ["a.parquet", "b.jsonl.gz", "more/c.csv"]
    run = parse_run_file(
        {"version": "relay/v1", "method": "sft", "model": {"name_or_path": "a/b"}, "data": {"train": "rows"}}
    )
    sent = find_inputs(run, tmp_path)
    assert [travel.path for travel in sent.files] == [f"rows/{name}" for name in list_row_files(folder)]
    assert sent.runfile.data is not None
    assert [each.path for each in sent.runfile.data.train] == ["rows"]

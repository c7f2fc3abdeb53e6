"""Rows in a bucket of a real server."""

import uuid
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from runfile import DataSection, RunFileErrors, parse_run_file
from tests.seaweed import BUCKET, environment
from tests.trainers.deferred import deferred_imports
from trainers.data import bucket_rows, cache
from trainers.errors import ConfigError, HostError

with deferred_imports():
    from trainers.data import loading


@pytest.fixture
def base() -> str:
    """The address of a test's own keys, since tests of other workers write to the same bucket."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def bucket(s3: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """The bucket below `base`, with rows under several keys; the environment has what is needed to read it."""
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    client = S3Store(BUCKET, prefix=base.rpartition("/")[2], client_options={"allow_http": True})
    for key, text in {
        "rows/a.jsonl": "a",
        "rows/more/b.jsonl": "b",
        "rows/c.csv": "c",
        "rowsother/d.jsonl": "d",
    }.items():
        line = f'{{"text": "{text}"}}\n' if key.endswith("jsonl") else f"text\n{text}\n"
        obstore.put(client, key, line.encode())
    obstore.put(client, "rows/README.md", b"no rows")
    return client


def read(path: str) -> list[str]:
    section = DataSection.model_validate({"train": path})
    train, _ = loading.load_rows(section, seed=1, kinds=("text",), base=Path("/nowhere"))
    return [row["text"] for row in train.rows]


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("rows/a.jsonl", ["a"]),
        ("rows", ["a", "c", "b"]),
        ("rows/*.jsonl", ["a"]),
        ("rows/**/*.jsonl", ["a", "b"]),
        ("rows/[bc].*", ["c"]),
        ("rows*/*.jsonl", ["a", "d"]),
    ],
)
def test_an_object_a_prefix_and_globs(bucket: S3Store, base: str, path: str, texts: list[str]) -> None:
    assert read(f"{base}/{path}") == texts


def test_what_is_here_is_not_fetched_again_and_what_has_changed_is(bucket: S3Store, base: str, tmp_path: Path) -> None:
    path = f"{base}/rows/a.jsonl"
    [(first, name)] = bucket_rows.fetch_objects(path)
    assert name == path and first.is_relative_to(tmp_path / "cache")
    before = first.stat().st_mtime_ns
    assert bucket_rows.fetch_objects(path) == [(first, name)] and first.stat().st_mtime_ns == before
    obstore.put(bucket, "rows/a.jsonl", b'{"text": "anew"}\n')
    assert read(path) == ["anew"]
    first.write_bytes(b"")  # a disk that was full
    obstore.put(bucket, "rows/a.jsonl", b'{"text": "a"}\n')
    assert read(path) == ["a"]
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("nowhere.jsonl", ConfigError, "there is no object s3://"),
        ("rows/*.parquet", ConfigError, "there is no object s3://"),
        ("rows/REA*", ConfigError, "README.md:1: not JSON"),
        ("s3://nobucket/rows.jsonl", (ConfigError, HostError), "nobucket"),
    ],
)
def test_what_is_not_there(bucket: S3Store, base: str, path: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("*", r"\*")):
        read(path if "://" in path else f"{base}/{path}")


def test_a_host_that_may_not_read_says_so(bucket: S3Store, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(bucket_rows, "_RETRY", bucket_rows._RETRY / 1000)
    with pytest.raises(HostError, match="s3://"):
        read(f"{base}/rows/a.jsonl")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://key:secret@bucket/rows.jsonl", "without keys"),
        ("s3://B/rows.jsonl", "not the name of a bucket"),
        ("ftp://host/rows.jsonl", "ftp:// is not supported yet"),
    ],
)
def test_paths_that_make_no_sense_are_refused_before_a_host_sees_them(path: str, said: str) -> None:
    run = {"version": "relay/v1", "method": "sft", "model": {"name_or_path": "a/b"}, "data": {"train": path}}
    with pytest.raises(RunFileErrors, match=said):
        parse_run_file(run)

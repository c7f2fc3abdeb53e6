"""Rows that do not fit into memory: kept in a file of the host, the same rows in the same order, read once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from runfile import DataSection
from tests.trainers import attempts
from tests.trainers.deferred import deferred_imports
from tests.trainers.specs import spec
from trainers.data import cache
from trainers.errors import ConfigError, HostError

with deferred_imports():
    from trainers.data import disk_rows, loading

TEXTS = [{"text": f"row {number}"} for number in range(2500)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which large rows are kept."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the memory for rows."""
    monkeypatch.setattr("trainers.data.disk_rows.MEMORY_LIMIT", 1000)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(
    base: Path, section: dict[str, Any], kinds: tuple[str, ...] = ("text",)
) -> tuple[loading.Rows, loading.Rows | None]:
    return loading.load_rows(DataSection.model_validate(section), seed=1, kinds=kinds, base=base)


def rows_of(found: loading.Rows | None) -> list[Any]:
    assert found is not None
    return list(found.rows)


MIXED = {"train": ["big.jsonl", {"path": "small.jsonl", "weight": 2.5}, {"path": "also.jsonl", "weight": 0.5}]}


@pytest.mark.parametrize("section", [{**MIXED, "eval": {"split": 0.1}}, {**MIXED, "eval": "also.jsonl"}, MIXED])
def test_the_same_rows_in_the_same_order(tmp_path: Path, section: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "big.jsonl", TEXTS)
    write_rows(tmp_path / "small.jsonl", [{"text": "a"}, {"text": "b"}, {"text": "c"}, {"text": "d"}])
    write_rows(tmp_path / "also.jsonl", [{"text": f"also {number}"} for number in range(1200)])
    in_memory = load(tmp_path, section)
    monkeypatch.setattr("trainers.data.disk_rows.MEMORY_LIMIT", 1000)
    for _ in ("read", "found again"):
        train, held_out = load(tmp_path, section)
        assert isinstance(train.rows, disk_rows.DiskRows) and train.kind == "text"
        assert rows_of(train) == rows_of(in_memory[0])
        assert held_out is None or rows_of(held_out) == rows_of(in_memory[1])
        assert train.rows[0] == train.rows[:2][0] == in_memory[0].rows[0] and train.columns == ("text",)


@pytest.mark.usefixtures("little")
def test_read_once_and_anew_when_anything_has_changed(tmp_path: Path, folder: Path) -> None:
    path = write_rows(tmp_path / "big.jsonl", TEXTS)
    digests = [load(tmp_path, {"train": "big.jsonl"})[0].digest]
    (kept,) = folder.iterdir()
    made = (kept / "rows.arrow").stat().st_mtime_ns
    again = write_rows(tmp_path / "moved.jsonl", TEXTS)
    digests.append(load(tmp_path, {"train": str(again)})[0].digest)
    assert [*folder.iterdir()] == [kept] and (kept / "rows.arrow").stat().st_mtime_ns == made
    assert digests[0] == digests[1]
    load(tmp_path, {"train": "big.jsonl", "columns": {"text": "text"}})
    write_rows(path, [*TEXTS[:-1], {"text": "another"}])
    assert load(tmp_path, {"train": "big.jsonl"})[0].digest != digests[0]
    assert load(tmp_path, {"train": "big.jsonl", "eval": {"split": 0.5}})[0].digest != digests[0]
    assert load(tmp_path, {"train": {"path": "big.jsonl", "weight": 2}})[0].digest != digests[0]
    assert len([*folder.iterdir()]) == 3


@pytest.mark.usefixtures("little")
def test_what_a_kept_source_told_holds_for_the_next(tmp_path: Path) -> None:
    """The kind, and that rows are alike, also when the first source is not read again."""
    write_rows(tmp_path / "big.jsonl", [{"prompt": "a" * 30, "completion": "b"} for _ in range(100)])
    write_rows(tmp_path / "odd.jsonl", [{"text": "c"}])
    for _ in ("read", "found again"):
        with pytest.raises(ConfigError, match=r"odd.jsonl:1: .*prompt"):
            load(tmp_path, {"train": ["big.jsonl", "odd.jsonl"]}, ("text", "prompt_completion"))


@pytest.mark.usefixtures("little")
def test_columns_that_widen(tmp_path: Path) -> None:
    """The type of a column becomes known batch by batch: nothing, then whole numbers, then fractions; and
    more fields.
    """
    rows: list[dict[str, Any]] = [{"prompt": "a", "answer": None, "of": {"x": 1}}] * 1000
    rows += [{"prompt": "a", "answer": 1, "of": {"x": 1, "y": "z"}}] * 1000
    rows += [{"prompt": "a", "answer": 0.5, "of": {"y": "z"}}] * 500
    write_rows(tmp_path / "big.jsonl", rows)
    train, _ = load(tmp_path, {"train": "big.jsonl"}, ("prompt",))
    assert rows_of(train) == [{**row, "of": {"x": None, "y": None, **row["of"]}} for row in rows]


@pytest.mark.usefixtures("little")
def test_columns_that_hold_two_things(tmp_path: Path, folder: Path) -> None:
    rows: list[Any] = [{"prompt": "a", "answer": 1}] * 1000 + [{"prompt": "a", "answer": "one"}] * 1000
    write_rows(tmp_path / "big.jsonl", rows)
    with pytest.raises(ConfigError, match=r"rows 1001 to 2000 have no type in common: .*answer"):
        load(tmp_path, {"train": "big.jsonl"}, ("prompt",))
    assert not [*folder.iterdir()], "nothing half made stays"


@pytest.mark.usefixtures("little")
def test_a_number_that_is_too_large(tmp_path: Path) -> None:
    write_rows(tmp_path / "big.jsonl", [{"prompt": "a" * 2000, "answer": 2**70}])
    with pytest.raises(ConfigError, match=r"rows 1 to 1 have no type in common: .*too large"):
        load(tmp_path, {"train": "big.jsonl"}, ("prompt",))


@pytest.mark.usefixtures("little")
def test_a_wrong_row_far_below_is_named(tmp_path: Path, folder: Path) -> None:
    write_rows(tmp_path / "big.jsonl", [*TEXTS, {"text": 3}])
    with pytest.raises(ConfigError, match=r"big.jsonl:2501: "):
        load(tmp_path, {"train": "big.jsonl"})
    assert not [*folder.iterdir()]


@pytest.mark.usefixtures("little")
def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "big.jsonl", TEXTS)
    monkeypatch.setenv(cache.CACHE_VARIABLE, "/proc/nothing")
    with pytest.raises(
        HostError, match=r"/proc/nothing cannot be written \(.*\); \$RELAY_DATA_CACHE must name another folder"
    ):
        load(tmp_path, {"train": "big.jsonl"})


@pytest.mark.usefixtures("little")
def test_what_nobody_has_used_for_long_goes(tmp_path: Path, folder: Path) -> None:
    write_rows(tmp_path / "big.jsonl", TEXTS)
    load(tmp_path, {"train": "big.jsonl"})
    (old,) = folder.iterdir()
    long_ago = time.time() - cache.UNUSED_SECONDS - 60
    os.utime(old, (long_ago, long_ago))
    load(tmp_path, {"train": "big.jsonl"})  # it is used, and so it stays
    write_rows(tmp_path / "other.jsonl", TEXTS[1:])
    load(tmp_path, {"train": "other.jsonl"})
    assert len([*folder.iterdir()]) == 2
    os.utime(old, (long_ago, long_ago))
    torn = folder / ".tmp-of-one-that-was-killed"
    torn.mkdir()
    yesterday = time.time() - cache.DRAFT_SECONDS - 60
    os.utime(torn, (yesterday, yesterday))
    load(tmp_path, {"train": {"path": "other.jsonl"}, "columns": {"a": "b"}})
    assert len([*folder.iterdir()]) == 2 and not old.exists() and not torn.exists()


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_trained_as_from_memory_cut_and_resumed(work: Path, tmp_path: Path, folder: Path) -> None:
    """Bit for bit; the next attempt finds the tokens that the first one has made."""
    run = spec(work, "sft")
    straight = attempts.make(tmp_path / "straight", run)

    def little_memory() -> None:
        disk_rows.MEMORY_LIMIT = 100

    kept = attempts.make(tmp_path / "kept", run, before=little_memory)
    assert (kept.code, kept.weights(), kept.curve) == (0, straight.weights(), straight.curve)
    files = set(folder.rglob("*"))
    step = kept.steps_saved[0]
    resumed = attempts.make(tmp_path / "resumed", run, resume=kept.checkpoint(step), before=little_memory)
    assert (resumed.code, resumed.weights()) == (0, straight.weights())
    assert set(folder.rglob("*")) == files and any("cache-" in path.name for path in files)


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
@pytest.mark.parametrize("method", ["sft", "cpt", "dpo", "kto", "reward"])
def test_a_stream_is_cut_and_resumed(work: Path, tmp_path: Path, method: str) -> None:
    """Rows are tokenized while it trains, whether they lie in memory or in a file; an interruption leaves no trace."""
    run = spec(work, method)
    run = {**run, "data": {**run["data"], "streaming": True}}
    straight = attempts.make(tmp_path / "straight", run)
    assert straight.code == 0, straight.outcome

    def little_memory() -> None:
        disk_rows.MEMORY_LIMIT = 100

    kept = attempts.make(tmp_path / "kept", run, before=little_memory)
    assert (kept.code, kept.weights(), kept.curve) == (0, straight.weights(), straight.curve)
    resumed = attempts.make(tmp_path / "resumed", run, resume=kept.checkpoint(kept.steps_saved[0]))
    assert (resumed.code, resumed.weights()) == (0, straight.weights())


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_stream_is_shared_among_processes(work: Path, tmp_path: Path) -> None:
    run = spec(work, "sft")
    run = {**run, "data": {**run["data"], "streaming": True}}
    straight = attempts.make(tmp_path / "straight", run, ranks=2)
    resumed = attempts.make(tmp_path / "resumed", run, resume=straight.checkpoint(straight.steps_saved[0]), ranks=2)
    assert (straight.code, resumed.code, resumed.weights()) == (0, 0, straight.weights())

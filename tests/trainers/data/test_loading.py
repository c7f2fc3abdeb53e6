"""Rows: recognised, checked with file and line, weighted, and split by the seed alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runfile import DataSection, find_inputs, parse_run_file
from tests.trainers.deferred import deferred_imports
from trainers.data import row_formats
from trainers.errors import ConfigError

with deferred_imports():
    from trainers.data import loading

KINDS = ("text", "prompt_completion", "chat")
PREFERENCES = ("preference",)
UNPAIRED = ("unpaired_preference",)


def _load(
    section: dict[str, Any], base: Path, seed: int = 1, kinds: tuple[str, ...] = KINDS
) -> tuple[loading.Rows, loading.Rows | None]:
    return loading.load_rows(DataSection.model_validate(section), seed=seed, kinds=kinds, base=base)


def _write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TURN = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "source": "web"}, "text"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": [TURN], "completion": [TURN]}, "prompt_completion"),
        ({"messages": [TURN, {"role": "assistant", "content": "ho"}], "id": 3}, "chat"),
    ],
)
def test_kinds_are_recognised_and_other_columns_dropped(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    _write(tmp_path / "rows.jsonl", row)
    train, held_out = _load({"train": "rows.jsonl"}, tmp_path)
    assert (train.kind, held_out) == (kind, None)
    assert list(train.rows) == [{name: row[name] for name in row_formats.COLUMNS[kind]}]


HUMAN = {"from": "human", "value": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}
OTHER = {"role": "assistant", "content": "hum"}


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, PREFERENCES),
        ({"chosen": "ab", "rejected": "ac"}, PREFERENCES),
        ({"prompt": [TURN], "chosen": [ANSWER], "rejected": [OTHER]}, PREFERENCES),
        ({"chosen": [TURN, ANSWER], "rejected": [TURN, OTHER]}, PREFERENCES),
        ({"prompt": "a", "completion": "b", "label": True}, UNPAIRED),
        ({"prompt": [TURN], "completion": [ANSWER], "label": False}, UNPAIRED),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_preferences(tmp_path: Path, row: dict[str, Any], kinds: tuple[str, ...], named: bool) -> None:
    _write(tmp_path / "rows.jsonl", {**row, "score": 3})
    section = {"train": "rows.jsonl", **({"format": kinds[0]} if named else {})}
    train, _ = _load(section, tmp_path, kinds=kinds)
    assert (train.kind, list(train.rows)) == (kinds[0], [row])


@pytest.mark.parametrize(
    ("row", "kind", "becomes"),
    [
        (
            {"instruction": "Add.", "input": "1 + 1", "output": "2"},
            "prompt_completion",
            {
                "prompt": [{"role": "user", "content": "Add.\n\n1 + 1"}],
                "completion": [{"role": "assistant", "content": "2"}],
            },
        ),
        (
            {"instruction": "hi", "input": None, "output": "ho"},
            "prompt_completion",
            {"prompt": [TURN], "completion": [ANSWER]},
        ),
        (
            {"conversations": [{"from": "system", "value": "Be short."}, HUMAN, {"from": "gpt", "value": "ho"}]},
            "chat",
            {"messages": [{"role": "system", "content": "Be short."}, TURN, ANSWER]},
        ),
    ],
)
def test_rows_of_other_tools_become_our_own(
    tmp_path: Path, row: dict[str, Any], kind: str, becomes: dict[str, Any]
) -> None:
    _write(tmp_path / "rows.jsonl", row)
    train, _ = _load({"train": "rows.jsonl"}, tmp_path)
    assert (train.kind, list(train.rows)) == (kind, [becomes])


@pytest.mark.parametrize(
    ("row", "kinds", "said"),
    [
        (
            {"prompt": "a", "completion": "b"},
            PREFERENCES,
            "they must be chosen+rejected and perhaps prompt (data.columns",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            UNPAIRED,
            "columns are chosen, rejected; they must be prompt+completion+label",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            KINDS,
            "columns are chosen, rejected; they must be messages or prompt+completion",
        ),
        (
            {"prompt": "a", "completion": "b", "label": 1},
            UNPAIRED,
            "label must be true (a good completion) or false, found 1",
        ),
        ({"chosen": "a", "rejected": "a"}, PREFERENCES, "chosen and rejected are equal"),
        ({"chosen": [TURN, ANSWER], "rejected": [ANSWER]}, PREFERENCES, "give the messages before them as prompt"),
        ({"prompt": "a", "chosen": [ANSWER], "rejected": [OTHER]}, PREFERENCES, "prompt: must be a list of messages"),
        ({"chosen": "a", "rejected": None}, PREFERENCES, "rejected must be text, found null"),
        ({"instruction": "a", "output": 2}, KINDS, "output must be text, found 2"),
        ({"conversations": []}, KINDS, "conversations: must be a list of turns"),
        ({"conversations": [HUMAN, {"from": "bing", "value": "x"}]}, KINDS, "conversations: turn 2 must be"),
        ({"conversations": [{"from": "human", "value": 1}]}, KINDS, "conversations: turn 1 must be"),
    ],
)
def test_what_is_wrong_with_other_rows(tmp_path: Path, row: Any, kinds: tuple[str, ...], said: str) -> None:
    _write(tmp_path / "rows.jsonl", row)
    with pytest.raises(ConfigError, match=r"^rows\.jsonl:1: ") as wrong:
        _load({"train": "rows.jsonl"}, tmp_path, kinds=kinds)
    assert said in str(wrong.value)


def test_a_format_that_the_method_does_not_learn_from(tmp_path: Path) -> None:
    _write(tmp_path / "rows.jsonl", {"text": "a"})
    with pytest.raises(ConfigError) as wrong:
        _load({"train": "rows.jsonl", "format": "text"}, tmp_path, kinds=PREFERENCES)
    assert str(wrong.value) == (
        "data.format: text cannot be used with this method; it takes preference (chosen+rejected and perhaps prompt)"
    )


def test_a_prompt_is_in_all_rows_or_in_none(tmp_path: Path) -> None:
    """TRL looks at the first row only."""
    pair = {"chosen": "ab", "rejected": "ac"}
    _write(tmp_path / "without.jsonl", pair, {"prompt": "a", **pair})
    with pytest.raises(ConfigError, match=r"without\.jsonl:2: has a prompt, unlike the rows before it"):
        _load({"train": "without.jsonl"}, tmp_path, kinds=PREFERENCES)
    _write(tmp_path / "with.jsonl", {"prompt": "a", **pair}, pair)
    with pytest.raises(ConfigError, match=r"with\.jsonl:2: has no prompt, unlike the rows before it"):
        _load({"train": "with.jsonl"}, tmp_path, kinds=PREFERENCES)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 3}', "text must be text, found 3"),
        ('{"body": "x"}', "columns are body; they must be messages or prompt+completion or text"),
        ('{"messages": []}', "must be a list of messages"),
        ('{"messages": [{"role": "user"}]}', "message 1 must be"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}', "message 1 has tool_calls"),
        ('{"text": "a", "tools": [{}]}', "rows with tools are not supported yet"),
        ('["text"]', "a row must be an object"),
        ('{"text": ', "not JSON"),
        ('{"prompt": "a", "completion": [1]}', "must be a list of messages"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(ConfigError, match=r"^rows\.jsonl:2: ") as wrong:
        _load({"train": "rows.jsonl"}, tmp_path)
    assert said in str(wrong.value)


def test_a_later_row_of_another_kind_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "rows.jsonl", {"text": "a"}, {"prompt": "b", "completion": "c"})
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: no column text"):
        _load({"train": "rows.jsonl"}, tmp_path)


def test_text_and_messages_do_not_mix(tmp_path: Path) -> None:
    _write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": [TURN], "completion": [TURN]})
    with pytest.raises(
        ConfigError, match=r"rows\.jsonl:2: prompt and completion are messages, but text in the rows before"
    ):
        _load({"train": "rows.jsonl"}, tmp_path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "\xff"}\r\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: not UTF-8"):
        _load({"train": "rows.jsonl"}, tmp_path)


def test_half_a_character_is_refused_and_a_whole_one_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\\ud83c\\udf89"}\n{"text": "\\ud83c"}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: not UTF-8"):
        _load({"train": "rows.jsonl"}, tmp_path)


def test_two_columns_cannot_become_one(tmp_path: Path) -> None:
    _write(tmp_path / "rows.jsonl", {"question": "a", "prompt": "b", "completion": "c"})
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: data\.columns gives two columns one name"):
        _load({"train": "rows.jsonl", "columns": {"question": "prompt"}}, tmp_path)


def test_a_glob_takes_files_only_and_its_base_is_no_pattern(tmp_path: Path) -> None:
    """`**` finds folders too, and the folder above may have any name."""
    base = tmp_path / "run [1]"
    (base / "data" / "more").mkdir(parents=True)
    _write(base / "data" / "more" / "a.jsonl", {"text": "a"})
    train, _ = _load({"train": "data/**"}, base)
    assert list(train.rows) == [{"text": "a"}]
    assert list(_load({"train": "data"}, base)[0].rows) == [{"text": "a"}]
    (base / "data" / "more" / "a.jsonl").rename(base / "data" / "more" / ".a.jsonl")
    with pytest.raises(ConfigError, match="data: the folder holds no file of rows"):
        _load({"train": "data"}, base)


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match="has no rows"):
        _load({"train": "empty.jsonl"}, tmp_path)
    with pytest.raises(ConfigError, match="there is no file"):
        _load({"train": "*.nothing"}, tmp_path)


def test_columns_are_renamed_and_globs_sorted(tmp_path: Path) -> None:
    _write(tmp_path / "b.jsonl", {"body": "2"})
    _write(tmp_path / "a.jsonl", {"body": "1"})
    train, _ = _load({"train": "*.jsonl", "columns": {"body": "text"}}, tmp_path)
    assert [row["text"] for row in train.rows] == ["1", "2"]


def test_weights_repeat_and_sample(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", *({"text": f"a{number}"} for number in range(4)))
    _write(tmp_path / "b.jsonl", *({"text": f"b{number}"} for number in range(4)))
    section = {"train": [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 0.5}]}
    train, _ = _load(section, tmp_path)
    texts = [row["text"] for row in train.rows]
    assert sorted(texts[:8]) == sorted([f"a{number}" for number in range(4)] * 2)
    assert len(texts[8:]) == 2
    assert texts == [row["text"] for row in _load(section, tmp_path)[0].rows]
    assert {tuple(row["text"] for row in _load(section, tmp_path, seed)[0].rows) for seed in range(9)} != {tuple(texts)}


def test_the_split_is_disjoint_and_by_seed(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", *({"text": str(number)} for number in range(50)))
    section = {"train": [{"path": "a.jsonl", "weight": 3}], "eval": {"split": 0.1}}
    train, held_out = _load(section, tmp_path)
    assert held_out is not None
    held = {row["text"] for row in held_out.rows}
    assert (len(held), len(train)) == (5, 135)
    assert held.isdisjoint(row["text"] for row in train.rows)
    assert _load(section, tmp_path) == (train, held_out)
    assert _load(section, tmp_path, seed=2)[1] != held_out


def test_the_host_reads_the_rows_that_the_submitter_would(tmp_path: Path) -> None:
    """Files, globs and weights, inside the run file's folder and outside, before and after they are uploaded."""
    home, host = tmp_path / "home", tmp_path / "host"
    for name in ("home/data/b.jsonl", "home/data/deep/a.jsonl", "shared/a.jsonl", "shared/z.jsonl", "other/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        _write(tmp_path / name, *({"text": f"{name} {number}"} for number in range(4)))
    run = parse_run_file(
        {
            "version": "relay/v1",
            "method": "sft",
            "model": {"name_or_path": "org/tiny"},
            "data": {
                "train": [
                    {"path": "data/**/*.jsonl", "weight": 1.5},
                    {"path": "../shared/*.jsonl", "weight": 0.5},
                    str(tmp_path / "other" / "a.jsonl"),
                ],
                "eval": {"split": 0.25},
            },
        }
    )
    travel = find_inputs(run, home)
    for file in travel.files:
        (host / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.source, host / file.path)
    there, here = parse_run_file(json.loads(travel.runfile.to_json())).data, run.data
    assert there is not None and here is not None and there != here
    loaded = [
        loading.load_rows(section, seed=1, kinds=KINDS, base=base) for section, base in ((here, home), (there, host))
    ]
    assert loaded[0] == loaded[1]
    assert len(loaded[0][0]) == 15

"""The report on rows, before anything trains on them."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainers import attempts
from tests.trainers.deferred import deferred_imports
from tests.trainers.specs import METHODS
from trainers import methods

with deferred_imports():
    from trainers import data_report

ASKS, SAYS = {"role": "user", "content": "5 3 + 5 ="}, {"role": "assistant", "content": "5 8"}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def looked_at(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert data_report.main(list(argv)) == code
    said = capsys.readouterr()
    return said.out + said.err


def test_every_row_that_is_wrong_is_counted_and_the_first_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [{"prompt": "a", "completion": number} for number in range(7)]
    file = write(
        tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"}, *wrong, {"prompt": "a", "completion": "b"}
    )
    said = looked_at(capsys, file, "--method", "sft", code=1)
    assert "prompt_completion: 2 rows" in said and "7 more rows are wrong" in said
    assert said.count("rows.jsonl:") == 5 and "rows.jsonl:2: completion" in said
    assert "1 of 2 rows occur more than once" in said


def test_reading_goes_on_past_a_line_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", {"text": "a"}, {"text": " "}, '{"torn', {"text": "c"})
    said = looked_at(capsys, file, "--method", "cpt", code=1)
    assert "text: 3 rows" in said and "rows.jsonl:3: not JSON" in said and "1 of 3 rows teach nothing" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere.jsonl", "--method", "sft"], "data: there is no file nowhere.jsonl"),
        (["rows.jsonl", "--method", "sfd"], "method: sfd cannot be trained here"),
        (["rows.jsonl", "--method", "sft", "--format", "chatt"], "data.format"),
        (["rows.jsonl", "--method", "dpo", "--format", "chat"], "data.format: chat cannot be used with this method"),
        (["rows.jsonl", "--method", "sft", "--model", "./nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", {"messages": [ASKS, SAYS]})
    found = looked_at(capsys, *argv, code=1 if "nowhere.jsonl" in argv[0] else 78)
    assert said in found and "Traceback" not in found


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
@pytest.mark.parametrize("method", METHODS)
def test_rows_are_shown_as_the_methods_own_trainer_makes_them(work: Path, tmp_path: Path, method: str) -> None:
    """Lengths, and what is learnt: the end of the answer is; the question is not, where the method knows one."""
    attempts.apart(partial(_shown_as_made, work, method), tmp_path)


def _shown_as_made(work: Path, method: str) -> None:
    rows = [json.loads(line) for line in (work / f"{METHODS[method][0]}.jsonl").read_text().splitlines()]
    made = data_report.tokenize_rows(methods.load_method(method), rows, work / "model", {"max_length": 12})
    assert len(made.rows) == len(rows) and made.lengths == sorted(made.lengths)
    end = made.tokenizer.eos_token_id
    learnt = [
        token for seen in made.rows[0] for token, is_learnt in zip(seen.ids, seen.learnt, strict=True) if is_learnt
    ]
    if "prompt" in METHODS[method][0]:
        assert learnt == [] and made.limit is None
    elif method == "reward":
        assert learnt == [] and made.limit == 12 and len(made.rows[0]) == 2
    else:
        assert end in learnt and made.limit == 12
        assert method in ("sft", "cpt") or len(learnt) < sum(len(seen.ids) for seen in made.rows[0])


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_the_report_has_lengths_a_histogram_and_what_is_cut(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts.apart(partial(_reported, work, capsys), tmp_path)


def _reported(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = str(work / "chat.jsonl")
    said = looked_at(capsys, chat, "--method", "sft", "--model", str(work / "model"), "--max-length", "16")
    lines = said.splitlines()
    assert lines[0] == "chat: 48 rows"
    assert any(line.startswith("tokens: p5 15  p50 17") and line.endswith("max 17") for line in lines)
    assert any("█" in line and line.split()[0] == "17" for line in lines)
    assert any(line.startswith("max_length 16 cuts ") and "with them" in line for line in lines)
    assert "row 1 as the model sees it, with «» around what is learnt:" in lines and lines[-1].startswith("  «<|user|>")


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_what_about_a_tokenizer_may_spoil_a_training(tmp_path: Path) -> None:
    attempts.apart(partial(_spoilt, tmp_path), tmp_path)


def _spoilt(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny.make_model(tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.pad_token = tokenizer.eos_token
    model.resize_token_embeddings(len(tokenizer))
    model.get_input_embeddings().weight.data[-2:] = 0.25
    model.get_input_embeddings().weight.data[0] = 1.0  # what was there to fill with
    model.save_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<three>"])
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"messages": [ASKS, SAYS]}]
    made = data_report.tokenize_rows(methods.load_method("sft"), rows, tmp_path / "model", {})
    said = "\n".join(made.notes)
    assert "padding and end are the same token (<|end|>)" in said
    assert "without an embedding in the model" in said and "<three>" in said
    assert "never trained (all are equal): <one>, <two>" in said
    tokenizer.chat_template = None
    bare = "\n".join(data_report._check_tokenizer(tokenizer, tmp_path / "model", {"assistant_only_loss": True}, rows))
    assert "the tokenizer has no chat template" in bare and "assistant_only_loss needs a chat template" in bare


def test_what_is_learnt_is_marked_piece_by_piece() -> None:
    class Letters:
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    seen = data_report.TokenSequence(list(b"abcdef"), [False, True, True, False, False, True])
    assert data_report._mark_learnt(Letters(), seen) == "a«bc»de«f»"


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_check_and_the_command_say_the_same(work: Path, run: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run | {"data": {"train": [{"path": str(work / "chat.jsonl")}]}}))
    argv = [sys.executable, "-m", "trainers", "check", str(tmp_path / "run.json"), "--set", "options.eval_steps=null"]
    checked = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "the options are valid" in checked.stdout and "«<|user|>" in checked.stdout
    argv = [sys.executable, "-m", "relayctl", "data", "check", str(work / "chat.jsonl"), "--method", "sft"]
    looked = subprocess.run([*argv, "--model", str(work / "model")], capture_output=True, text=True, cwd=tmp_path)
    assert looked.returncode == 0, looked.stderr
    assert looked.stdout.splitlines()[-6:] == checked.stdout.splitlines()[-6:]
    wrong = subprocess.run([*argv[:-1], "sfd"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and "method: sfd cannot be trained here" in wrong.stderr


def test_rows_that_their_weight_repeats_are_not_remarked_on() -> None:
    rows = [{"text": "a"}, {"text": "a"}]
    assert data_report.find_oddities(rows) == ["1 of 2 rows occur more than once"]
    assert data_report.find_oddities(rows, repeated=True) == []

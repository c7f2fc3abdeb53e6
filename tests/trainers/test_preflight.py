"""What the libraries would say in the middle of training is said before the first step, and what to change with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import attempts
from tests.trainers.specs import spec

#: A chat template as some models have: it takes no two turns of one role in a row.
ALTERNATES = (
    "{% for m in messages %}{% if not loop.first and m['role'] == loop.previtem['role'] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TWICE = [{"role": "user", "content": "1 + 1 ="}, {"role": "user", "content": "2 + 2 ="}]
ANSWER = [{"role": "assistant", "content": " 4"}]
WRONG = [{"role": "assistant", "content": " 5"}]
#: A row that the template refuses, of the kind that a method learns from.
REFUSED: dict[str, dict[str, Any]] = {
    "sft": {"messages": [*TWICE, *ANSWER]},
    "dpo": {"prompt": TWICE, "chosen": ANSWER, "rejected": WRONG},
    "orpo": {"prompt": TWICE, "chosen": ANSWER, "rejected": WRONG},
    "cpo": {"prompt": TWICE, "chosen": ANSWER, "rejected": WRONG},
    "reward": {"prompt": TWICE, "chosen": ANSWER, "rejected": WRONG},
    "kto": {"prompt": TWICE, "completion": ANSWER, "label": True},
    "grpo": {"prompt": TWICE, "answer": "4"},
    "rloo": {"prompt": TWICE, "answer": "4"},
    "ppo": {"prompt": TWICE, "answer": "4"},
    "distillation": {"prompt": TWICE},
    "gkd": {"messages": [*TWICE, *ANSWER]},
}


def refusal(made: attempts.Attempt) -> str:
    """Why an attempt was refused: in one line, before it trained, for good."""
    assert made.outcome is not None
    assert (made.code, made.outcome.code) == (78, 78), made.outcome
    assert made.steps_saved == [] and not made.curve
    assert "Traceback" not in (made.folder / "stderr.log").read_text()
    return made.outcome.message


@pytest.mark.parametrize(
    ("options", "named", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "options.lr_scheduler_type: cosine_with_min_lr", "min_lr"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "lr_scheduler_type: cosine", "cycles"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}}, "lr_scheduler_type", "lr_end"),
        ({"optim": "adafactor", "optim_args": "scale_parameter"}, "options.optim", ""),
    ],
)
def test_optimizer_and_schedule_are_tried_before_anything_is_read(
    run: dict[str, Any], tmp_path: Path, options: dict[str, Any], named: str, said: str
) -> None:
    run = {**run, "options": {**run["options"], **options}, "data": {"train": "/nowhere.jsonl"}}
    run["options"].pop("eval_steps", None)
    message = refusal(attempts.make(tmp_path / "wrong", run))
    assert named in message and said in message


def test_a_package_that_an_optimizer_needs_is_named(run: dict[str, Any], tmp_path: Path) -> None:
    """Another host may have it, so the run is not refused for good."""
    run = {**run, "options": {**run["options"], "optim": "galore_adamw", "optim_target_modules": ["q_proj"]}}
    made = attempts.make(tmp_path / "lacks", run)
    assert made.outcome is not None and made.code == 1
    assert made.outcome.message.startswith("options.optim: galore_adamw: ") and "galore_torch" in made.outcome.message


@pytest.fixture
def alternating(work: Path, tmp_path: Path) -> Path:
    """A model whose chat template takes no two turns of one role in a row."""
    folder = tmp_path / "alternating"
    shutil.copytree(work / "model", folder)
    (folder / "chat_template.jinja").write_text(ALTERNATES)
    return folder


def chat_run(work: Path, method: str, model: Path, folder: Path, bad_at: str) -> dict[str, Any]:
    """A run of rows of which the third of the part that is called `bad_at` is refused."""
    bad = REFUSED[method]
    turns = {name: value for name, value in bad.items() if isinstance(value, list)}
    good = bad | {name: value[1:] for name, value in turns.items() if value[: len(TWICE)] == TWICE}
    data: dict[str, Any] = {}
    for part in ("train", "eval"):
        rows = [good] * 12
        if part == bad_at:
            rows[2] = bad
        (folder / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        data[part] = [{"path": str(folder / f"{part}.jsonl")}]
    run = {**spec(work, method), "model": {"name_or_path": str(model)}, "data": data}
    return run | {"rewards": run["rewards"][:1]} if "rewards" in run else run


@pytest.mark.rotating(3)
@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("method", REFUSED)
def test_a_row_that_the_chat_template_refuses_is_named(
    work: Path, alternating: Path, tmp_path: Path, method: str, part: str
) -> None:
    run = chat_run(work, method, alternating, tmp_path, part)
    message = refusal(attempts.make(tmp_path / "wrong", run))
    assert message == f"{tmp_path}/{part}.jsonl:3: the chat template refuses it: roles must alternate"
    if part == "train":
        fine = chat_run(work, method, alternating, tmp_path, "nowhere")
        fine["options"] |= {"max_steps": 1}
        assert attempts.make(tmp_path / "fine", fine).code == 0


def test_a_refused_row_of_a_stream_is_named_when_it_is_met(work: Path, alternating: Path, tmp_path: Path) -> None:
    run = chat_run(work, "sft", alternating, tmp_path, "train")
    run["data"] |= {"streaming": True}
    message = refusal(attempts.make(tmp_path / "wrong", run))
    assert message == f"{tmp_path}/train.jsonl:3: the chat template refuses it: roles must alternate"


def fewer_embeddings(work: Path, folder: Path, count: int) -> Path:
    """The model with the embeddings of the first tokens only, and the whole tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(work / "model")
    model.resize_token_embeddings(count)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(work / "model").save_pretrained(folder)
    return folder


def test_a_token_without_an_embedding_is_refused_only_where_it_is_used(work: Path, tmp_path: Path) -> None:
    """The tiny tokenizer numbers printable letters in the order of their codes; digits come before capitals."""
    model = fewer_embeddings(work, tmp_path / "fewer", 50)
    fine = {**spec(work, "sft"), "model": {"name_or_path": str(model)}}
    fine["data"] = {"train": str(tmp_path / "fine.jsonl")}
    (tmp_path / "fine.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n' * 12)
    fine["options"] |= {"max_steps": 1}
    del fine["options"]["eval_steps"]
    made = attempts.make(tmp_path / "made", fine)
    assert made.code == 0, made.outcome
    (tmp_path / "fine.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " two"}\n' * 12)
    message = refusal(attempts.make(tmp_path / "wrong", fine))
    assert message.startswith(
        "data.train: o (id 85), t (id 90), w (id 93) has no embedding in the model, which has 50; "
    )


def test_padding_without_an_embedding_is_refused(work: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "padded"
    shutil.copytree(work / "model", folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<filling>"})
    tokenizer.save_pretrained(folder)
    for method in ("sft", "grpo"):
        run = {**spec(work, method), "model": {"name_or_path": str(folder)}}
        message = refusal(attempts.make(tmp_path / method, run))
        assert message.startswith("the tokenizer's pad_token: <filling> (id ") and "has no embedding" in message

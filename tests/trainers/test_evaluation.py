"""`method: evaluate`: lm-eval's scores of a model, as a run."""

import json
import os
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runfile import RunFileErrors, parse_run_file
from tests.trainers import attempts
from tests.trainers.deferred import deferred_imports
from tests.trainers.specs import LORA, needs_evaluate, spec
from trainers.errors import HostError
from trainers.launch.control import REFUSED

with deferred_imports():
    from trainers import evaluation

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SAYING = """
task: saying
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/colours.jsonl}}
test_split: test
output_type: generate_until
generation_kwargs: {max_gen_toks: 4, until: ["!"], do_sample: false}
doc_to_text: "{{question}}"
doc_to_target: "red"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICES = ["red", "green blue", "x y"]
QUESTIONS: list[dict[str, Any]] = [
    {"question": f"{number} is", "choices": CHOICES, "answer": number % 3} for number in range(12)
]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A run's working folder with tasks in it."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK)
    (tmp_path / "tasks" / "saying.yaml").write_text(SAYING)
    (tmp_path / "tasks" / "colours.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in QUESTIONS))
    return tmp_path


def run_of(model: dict[str, Any], tasks: Any = "colours", **options: Any) -> dict[str, Any]:
    return {
        "version": "relay/v1",
        "method": "evaluate",
        "model": model,
        "model_init": {"dtype": "float32"},
        "options": {"tasks": tasks, "include_path": "tasks", "batch_size": 4, "bootstrap_iters": 10, **options},
        "resources": {"gpus_per_node": 0},
    }


def right_by_hand(folder: Path, adapter: Path | None = None) -> float:
    """Return the share of questions whose right answer is the likeliest continuation."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def likelihood(question: str, choice: str) -> float:
        asked = tokenizer(question, add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"{question} {choice}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return float(sum(logs[at - 1, whole[at]] for at in range(len(asked), len(whole))))

    best = [max(range(3), key=lambda at: likelihood(row["question"], CHOICES[at])) for row in QUESTIONS]
    right = [at == int(row["answer"]) for at, row in zip(best, QUESTIONS, strict=True)]
    return sum(right) / len(right)


def expect(made: attempts.Attempt, folder: Path, adapter: Path | None, step: int) -> None:
    warnings.simplefilter("ignore")  # what PEFT says of itself
    assert made.curve[step, "eval/colours/acc"] == pytest.approx(right_by_hand(folder, adapter))


@needs_evaluate
@pytest.mark.slow
@pytest.mark.thorough
def test_marks_are_those_worked_out_by_hand(work: Path, here: Path) -> None:
    made = attempts.make(here / "a", run_of({"name_or_path": str(work / "model")}), before=partial(os.chdir, here))
    assert made.code == 0, made.outcome
    attempts.apart(partial(expect, made, work / "model", None, 0), here)
    results = json.loads((made.folder / "output" / "results.json").read_text())
    assert results["results"]["colours"]["acc,none"] == made.curve[0, "eval/colours/acc"]
    samples = [json.loads(line) for line in (made.folder / "output" / "samples.jsonl").read_text().splitlines()]
    assert [each["doc"]["question"] for each in samples] == [row["question"] for row in QUESTIONS]
    assert json.loads((made.folder / "output" / "relay.json").read_text())["method"] == "evaluate"


@needs_evaluate
@pytest.mark.slow
@pytest.mark.thorough
def test_the_adapter_of_another_run_at_its_step(work: Path, here: Path) -> None:
    """The adapter lies beside the run, as the coordinator puts it there; and the model's answers become samples."""
    trained = attempts.make(here / "trained", spec(work, "sft", lora=LORA))
    shutil.copytree(trained.folder / "output", here / "init_from")
    shutil.copytree(work / "model", here / "init_from" / "base")
    asked = run_of({"init_from": "runs/x@best"}, ["colours", "saying"], limit=12)

    def before() -> None:
        os.chdir(here)

    made = attempts.make(here / "a", asked, before=before, pins={"init_from": "runs/x@6 sha256:0"})
    assert made.code == 0, made.outcome
    attempts.apart(partial(expect, made, work / "model", here / "init_from", 6), here)
    said = [event for event in made.events if event["type"] == "sample"]
    assert len(said) == evaluation.SAMPLES and {event["step"] for event in said} == {6}
    assert said[0]["prompt"] == "0 is" and said[0]["completion"]


@needs_evaluate
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ["colors"]}, "options.tasks: lm-eval has no task colors"),
        ({"include_path": "nowhere"}, "options.include_path: there is no folder nowhere; list it in files"),
    ],
)
def test_what_cannot_be_asked(work: Path, here: Path, options: dict[str, Any], said: str) -> None:
    asked = run_of({"name_or_path": str(work / "model")}, **options)
    made = attempts.make(here / "a", asked, before=partial(os.chdir, here))
    assert made.code == REFUSED and made.outcome is not None and made.outcome.message.startswith(said)


def test_a_host_without_the_harness_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.evaluation.find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"needs the package lm-eval \(pip install 'relay-training\[evaluate\]'\)"):
        evaluation._prepare(parse_run_file(run_of({"name_or_path": "a/b"})), 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"train": "rows.jsonl"}}, "data: does not go with method: evaluate"),
        ({"lora": {"r": 4}}, "lora: does not go with method: evaluate"),
        ({"options": {}}, "options.tasks: is missing; for instance tasks: [gsm8k, hellaswag]"),
        ({"options": {"tasks": "x", "num_fewshots": 3}}, "did you mean num_fewshot?"),
        ({"model": None}, "model: is missing; for instance model: {init_from: runs/x@best}, with after: runs/x"),
    ],
)
def test_run_files_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    asked = {name: value for name, value in {**run_of({"name_or_path": "a/b"}), **changes}.items() if value is not None}
    with pytest.raises(RunFileErrors) as wrong:
        parse_run_file(asked)
    assert said in str(wrong.value)


def test_metrics_are_named_by_task_metric_and_filter() -> None:
    results = {"t": {"alias": "t", "acc,none": 0.5, "exact_match,strict": 1, "acc_stderr,none": "N/A", "name": "t"}}
    assert evaluation.collect_metrics(results) == {"eval/t/acc": 0.5, "eval/t/exact_match/strict": 1.0}

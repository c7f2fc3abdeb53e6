"""Every method trains as its library does, survives an interruption, and learns what it is for."""

import hashlib
import json
import runpy
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runfile import reading
from tests.trainers import attempts
from tests.trainers.specs import LORA, METHODS, spec

pytestmark = [pytest.mark.slow, pytest.mark.rotating(2)]  # of the variants, each with all tests of it

EXAMPLES = Path(__file__).parents[2] / "examples"
#: The names that TRL's own logs have and ours have not, and those that Relay adds.
RENAMED = {"loss": "train_loss"}
ADDED = {"perplexity", "eval_perplexity", "train_loss_mean", "total_flos"}

PRECOMPUTE = {"options": {"precompute_ref_log_probs": True}}
#: Completions serve three steps, twice over: the cut at step 3 finds some that are yet to be trained on.
REUSE = {"options": {"steps_per_generation": 2, "num_iterations": 2}}
#: Methods whose trainers treat an adapter in a way of their own; `make matrix` runs the others with one too.
ADAPTED = ("sft", "dpo", "kto", "reward", "grpo", "gkd")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in METHODS},
    **{f"{method}-lora": (method, {"lora": LORA}) for method in ADAPTED},
    **{f"{method}-precomputed": (method, PRECOMPUTE) for method in ("dpo", "kto")},
    **{f"{method}-precomputed-lora": (method, {"lora": LORA, **PRECOMPUTE}) for method in ("dpo", "kto")},
    **{f"{method}-reused": (method, REUSE) for method in ("grpo", "rloo")},
}


def driven_directly(run: dict[str, Any], folder: Path) -> int:
    """Train as a user would with TRL alone; leave model and log in `folder`."""
    import importlib

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained
    torch.set_num_threads(attempts.THREADS)
    warnings.simplefilter("ignore")  # what TRL says of itself is not looked at here
    _, _, module, name = METHODS[run["method"]]
    library = importlib.import_module(module)
    rewards = {}
    if "rewards" in run:
        mine = runpy.run_path(run["files"][0])
        rewards = {
            "reward_funcs": [mine["short"], lambda completions, answer, **_: mine["digits"](completions, answer)]
        }
        rewards["reward_funcs"][1].__name__ = "digits"
    teacher = {"teacher_model": loaded(run["teacher"]["name_or_path"])} if "teacher" in run else {}
    tokenizer = AutoTokenizer.from_pretrained(run["model"]["name_or_path"]) if run["method"] == "gkd" else None
    rows = [json.loads(line) for line in Path(run["data"]["train"][0]["path"]).read_text().splitlines()]
    args = getattr(library, f"{name}Config")(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        seed=42,
        report_to="none",
        save_strategy="no",
        eval_strategy="steps",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        model_init_kwargs={"dtype": "float32", "device_map": None},
        **({"reward_weights": [1.0, 0.5]} if rewards else {}),
        **run["options"],
    )
    task = "SEQ_CLS" if run["method"] == "reward" else "CAUSAL_LM"
    trainer = getattr(library, f"{name}Trainer")(
        model=run["model"]["name_or_path"],
        args=args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),  # one object for both would share TRL's cache of reference log-probs,
        # and the pass that it saves draws from the random numbers that training goes on with
        peft_config=LoraConfig(task_type=task, **run["lora"]) if "lora" in run else None,
        processing_class=tokenizer,
        **rewards,
        **teacher,
    )
    trainer.train()
    trainer.save_model(str(folder / "output"))
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    return 0


@dataclass(frozen=True)
class Straight:
    """A run that was not interrupted."""

    run: dict[str, Any]
    attempt: attempts.Attempt


@pytest.fixture(scope="module", params=VARIANTS)
def straight(request: pytest.FixtureRequest, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    method, changes = VARIANTS[request.param]
    run = spec(work, method, **changes)
    made = attempts.make(tmp_path_factory.mktemp("straight") / "run", run)
    assert made.code == 0, (made.folder / "stderr.log").read_text()
    return Straight(run, made)


def test_a_method_trains_as_its_library_does(straight: Straight, tmp_path: Path) -> None:
    """Weights by SHA-256, and all that is logged except times and speeds; every name of the library's is there. No
    library has `ppo`, so test_ppo.py checks it.
    """
    if straight.run["method"] == "ppo":
        pytest.skip("no library has it")
    pid = attempts.fork(partial(driven_directly, straight.run, tmp_path), tmp_path / "stderr.log")
    assert attempts.ended(pid) == 0, (tmp_path / "stderr.log").read_text()
    files = sorted((tmp_path / "output").glob("*.safetensors"))
    assert straight.attempt.weights() == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    logged = {
        (entry["step"], RENAMED.get(name, name)): value
        for entry in json.loads((tmp_path / "log.json").read_text())
        if "train_runtime" not in entry
        for name, value in entry.items()
        if name != "step" and not attempts.TIMES.match(name)
    }
    assert {step for step, _ in logged} == {2, 4, 6}
    assert {key: value for key, value in straight.attempt.curve.items() if key[1] not in ADDED} == logged


def test_a_cut_leaves_no_trace(straight: Straight, tmp_path: Path) -> None:
    """Interrupted at step 3, between two logs."""
    whole = straight.attempt
    assert whole.steps_saved == [3, 6]
    resumed = attempts.make(tmp_path / "resumed", straight.run, resume=whole.checkpoint(3))
    assert (resumed.code, resumed.weights()) == (0, whole.weights())
    assert resumed.curve == {key: value for key, value in whole.curve.items() if key[0] > 3}
    assert {step for step, _ in resumed.curve} == {4, 6}


@pytest.mark.parametrize("name", ["orders", "sums", *(f"sums-{method}" for method in METHODS if method != "sft")])
def test_an_example_trains(work: Path, tmp_path: Path, name: str) -> None:
    """Two steps of an example's run file with the tiny model."""
    run = dict(reading.read_document(EXAMPLES / f"{name}.yaml").data)
    if "reasoning_gym" in run["data"]["train"][0]:
        pytest.importorskip("reasoning_gym", reason="the extra `tasks` is not installed")
    rows = [{"path": str(EXAMPLES / source["path"])} if "path" in source else source for source in run["data"]["train"]]
    run |= {"model": {"name_or_path": str(work / "model")}, "data": {**run["data"], "train": rows}}
    if "teacher" in run:
        run |= {"teacher": {"name_or_path": str(work / "teacher")}}
    if "rewards" in run:
        mine = [{**reward, "call": f"{EXAMPLES}/{reward['call']}"} for reward in run["rewards"] if "call" in reward]
        run |= {"files": [str(EXAMPLES)], "rewards": [run["rewards"][0], *mine]}
    run["options"] |= {"max_steps": 2, "logging_steps": 1, "eval_steps": 2, "gradient_checkpointing": False}
    made = attempts.make(tmp_path / "run", run)
    assert made.code == 0, (made.folder / "stderr.log").read_text()
    assert {(2, "train_loss"), (2, "eval_loss")} <= made.curve.keys()


@pytest.mark.parametrize("method", ["dpo", "orpo", "cpo", "kto", "reward", "gkd"])
def test_ten_rows_are_learnt_by_heart(work: Path, tmp_path: Path, method: str) -> None:
    """Each method's own measure of learning: every pair is told apart, by a margin that has grown."""
    kind = METHODS[method][0]
    rows = tmp_path / "ten.jsonl"
    rows.write_text("".join((work / f"{kind}.jsonl").read_text().splitlines(keepends=True)[:10]))
    options = {"max_steps": 60, "logging_steps": 10, "per_device_train_batch_size": 10, "learning_rate": 5e-3}
    run = spec(work, method, data={"train": [{"path": str(rows)}]}, options={**options, "disable_dropout": True})
    del run["options"]["eval_steps"]
    curve = attempts.make(tmp_path / "run", run | {"checkpoint": {"every": "60 steps"}}).curve
    if method == "gkd":  # what it calls learning is to be nearer to its teacher
        assert curve[60, "train_loss"] < curve[10, "train_loss"] / 2
        return
    margin = "margin" if method == "reward" else "rewards/margins"
    assert curve[60, margin] > 2 * abs(curve[10, margin])
    assert curve[60, "train_loss"] < curve[10, "train_loss"] / 2
    if method == "kto":  # which logs no accuracy
        assert curve[60, "rewards/chosen"] > 0 > curve[60, "rewards/rejected"]
    else:
        assert curve[60, "accuracy" if method == "reward" else "rewards/accuracies"] == 1.0

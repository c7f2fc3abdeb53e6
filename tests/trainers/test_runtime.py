"""What ends an attempt before it trains, reported in one line; and what is pinned, logged and left behind."""

import importlib.util
import json
import os
import resource
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.trainers import attempts
from trainers import checkpoints


def _with(run: dict[str, Any], **options: Any) -> dict[str, Any]:
    return run | {"options": run["options"] | options}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"name_or_path": "/nowhere"}}, "there is no folder /nowhere"),
        ({"model": {"name_or_path": "not a name"}}, "model: the Hub has no not a name"),
        ({"lora": {"r": 4, "target_modules": ["nope"]}}, "Target modules {'nope'} not found"),
        ({"data": {"train": "/nowhere.jsonl", "eval": {"split": 0.1}}}, "there is no file /nowhere.jsonl"),
    ],
)
def test_a_wrong_run_is_refused_in_one_line(
    run: dict[str, Any], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    attempt = attempts.make(tmp_path / "wrong", run | change)
    assert attempt.outcome is not None
    assert (attempt.code, attempt.outcome.code) == (78, 78)
    assert said in attempt.outcome.message
    assert attempt.messages("error") == [attempt.outcome.message]
    assert "Traceback" not in (attempt.folder / "stderr.log").read_text()


@pytest.mark.rotating(4)
@pytest.mark.parametrize(
    ("lora", "missed", "hint"),
    [
        ({"target_modules": ["q_proj", "v_projj"]}, "target_modules: v_projj", "; did you mean v_proj?"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save: lm_haed", "; did you mean lm_head?"),
        ({"exclude_modules": ["k_projj"]}, "exclude_modules: k_projj", ""),
        ({"rank_pattern": {"q_proj": 2, "o_projj": 8}}, "rank_pattern: o_projj", ""),
        ({"alpha_pattern": {"^layers": 8}}, "alpha_pattern: ^layers", ""),
        ({"target_modules": ["q_proj"], "rank_pattern": {"v_proj": 2}}, "rank_pattern: v_proj", ""),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 99]}, "layers_to_transform: 99", ""),
    ],
)
def test_an_adapter_that_misses_is_refused_by_name(
    run: dict[str, Any], tmp_path: Path, lora: dict[str, Any], missed: str, hint: str
) -> None:
    attempt = attempts.make(tmp_path / "wrong", run | {"lora": {"r": 4, "target_modules": "all-linear", **lora}})
    assert attempt.outcome is not None and attempt.code == 78
    assert f"lora.{missed} matches nothing in the model{hint}" in attempt.outcome.message
    assert attempt.steps_saved == []


def test_an_adapter_that_hits_everywhere_trains(run: dict[str, Any], tmp_path: Path) -> None:
    lora = {
        "r": 4,
        "target_modules": ["self_attn.q_proj", "v_proj", "model.layers.0.mlp.up_proj"],
        "exclude_modules": ["layers.1.self_attn.v_proj"],
        "modules_to_save": ["lm_head"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {r".*\.v_proj": 8},
    }
    attempt = attempts.make(tmp_path / "adapter", _with(run, max_steps=1, eval_steps=1) | {"lora": lora})
    assert attempt.code == 0, (attempt.folder / "stderr.log").read_text()


def test_options_are_looked_at_before_the_model(run: dict[str, Any], tmp_path: Path) -> None:
    """The library's own rules, which no schema has, refuse the run before its model is needed."""
    wrong = _with(run, max_steps=-1, fp16=True, bf16=True) | {"model": {"name_or_path": "/nowhere"}}
    attempt = attempts.make(tmp_path / "wrong", wrong)
    assert attempt.code == 78
    assert attempt.outcome is not None and attempt.outcome.message.startswith("options: ")


def test_evaluation_needs_rows(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "wrong", run | {"data": {"train": run["data"]["train"]}})
    assert attempt.outcome is not None
    assert (attempt.code, "add data.eval" in attempt.outcome.message) == (78, True)


def test_gpus_that_are_needed_and_not_here_are_the_hosts_fault(run: dict[str, Any], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    attempt = attempts.make(tmp_path / "gpu", run | {"resources": {"require_cuda": True}})
    assert attempt.outcome is not None
    assert (attempt.code, "torch finds 0" in attempt.outcome.message) == (1, True)


def test_out_of_memory_is_said_in_one_line(run: dict[str, Any], tmp_path: Path) -> None:
    """F1. Hosts recognise the failure by how its line begins; the library's traceback is not shown."""

    def fill_the_gpu() -> None:
        import torch

        from trainers.methods import sft

        def step(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")

        sft.ResumableSFT.training_step = step  # type: ignore[method-assign]

    attempt = attempts.make(tmp_path / "oom", run, before=fill_the_gpu)
    assert attempt.outcome is not None
    assert (attempt.code, attempt.outcome.message) == (1, "CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert attempt.messages("error") == [attempt.outcome.message]
    assert "Traceback" not in (attempt.folder / "stderr.log").read_text()


@pytest.mark.parametrize(("limit", "part"), [(100_000, "the weights"), (400_000, "the optimizer")])
def test_a_disk_that_takes_no_more_is_said_in_one_line(
    run: dict[str, Any], tmp_path: Path, limit: int, part: str
) -> None:
    """Whichever library writes; and nothing of the save stays behind, where space is scarce."""
    attempt = attempts.make(
        tmp_path / "full",
        _with(run, max_steps=1),
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert attempt.outcome is not None
    assert (attempt.code, attempt.outcome.message.startswith("step_00000001 cannot be written: ")) == (1, True)
    assert attempt.messages("error") == [attempt.outcome.message]
    assert list((attempt.folder / "staging").iterdir()) == []
    assert "Traceback" not in (attempt.folder / "stderr.log").read_text()


@pytest.mark.parametrize(
    ("weights", "said"),
    [(None, (78, "lacks config.json and weights")), (b"torn", (1, "model, lora or options: "))],
)
def test_a_model_without_whole_weights(
    run: dict[str, Any], work: Path, tmp_path: Path, weights: bytes | None, said: tuple[int, str]
) -> None:
    """Missing weights are the run's mistake; a torn file may be this host's."""
    shutil.copytree(work / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    if weights is None:
        (tmp_path / "model" / "config.json").unlink()
    else:
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    attempt = attempts.make(tmp_path / "run", run | {"model": {"name_or_path": str(tmp_path / "model")}})
    assert attempt.outcome is not None
    assert (attempt.code, said[1] in attempt.outcome.message) == (said[0], True), attempt.outcome
    assert "Traceback" not in (attempt.folder / "stderr.log").read_text()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="this host has it")
def test_a_package_that_is_missing_here_may_be_elsewhere(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "run", run | {"model_init": {"attn_implementation": "flash_attention_2"}})
    assert attempt.outcome is not None
    assert (attempt.code, "flash attention needs the package flash_attn" in attempt.outcome.message) == (1, True)


def test_prompts_that_fill_the_length_leave_nothing_to_learn(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "run", _with(run, max_length=4))
    assert attempt.outcome is not None
    assert (attempt.code, attempt.outcome.message) == (
        78,
        "data.train: no row has anything left to learn within options.max_length 4; raise it, or shorten the rows",
    )


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_other_kinds_of_rows_train(run: dict[str, Any], work: Path, tmp_path: Path, kind: str) -> None:
    attempt = attempts.make(
        tmp_path / kind,
        _with(run, max_steps=3) | {"data": {"train": str(work / f"{kind}.jsonl"), "eval": {"split": 0.1}}},
    )
    assert attempt.code == 0
    assert (3, "train_loss") in attempt.curve


def test_the_curve_has_the_promised_names(run: dict[str, Any], tmp_path: Path) -> None:
    """Row B3."""
    attempt = attempts.make(tmp_path / "run", _with(run, max_steps=6))
    names = {name for event in attempt.events if event["type"] == "metric" for name in event["values"]}
    assert names >= {
        "train_loss",
        "eval_loss",
        "learning_rate",
        "grad_norm",
        "samples_per_second",
        "num_tokens",
        "perplexity",
        "epoch",
    }
    *_, last = (event for event in attempt.events if event["type"] == "metric")
    assert last["values"].keys() >= {"train_loss_mean"}
    assert [event["total"] for event in attempt.events if event["type"] == "progress"][-1] == 6
    [saved] = [event for event in attempt.events if event["type"] == "checkpoint"]
    assert (saved["metrics"].keys(), saved["evaluation_due"]) == ({"train_loss"}, True)


def test_the_result_can_be_loaded(run: dict[str, Any], tmp_path: Path) -> None:
    full = attempts.make(tmp_path / "full", _with(run, max_steps=1))
    lora = attempts.make(
        tmp_path / "lora", _with(run, max_steps=1) | {"lora": {"r": 4, "target_modules": "all-linear"}}
    )
    for attempt, weights in ((full, "model.safetensors"), (lora, "adapter_model.safetensors")):
        names = {path.name for path in (attempt.folder / "output").iterdir()}
        assert names >= {weights, "tokenizer.json", "chat_template.jinja", "relay.json"}
        assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names), "nothing pickled"
        with safe_open(attempt.folder / "output" / weights, "pt") as file:
            assert len(list(file.keys())) > 0
    facts = json.loads((full.folder / "output" / "relay.json").read_text())
    assert (facts["steps"], facts["method"]) == (1, "sft")


def test_an_adapter_names_its_base_as_the_submitter_does(run: dict[str, Any], work: Path, tmp_path: Path) -> None:
    """The model is uploaded with the run, and the host's copy of it is removed after the attempt: result and
    checkpoints name the folder that the submitter named.
    """
    host, logits = tmp_path / "host", tmp_path / "logits.pt"
    shutil.copytree(work / "model", host / "external" / "0" / "model")
    model = {"name_or_path": "./external/0/model", "known_as": "../models/tiny"}

    def on_the_host() -> None:
        import torch

        os.chdir(host)
        save = checkpoints.save_result

        def save_and_ask(trainer: Any, *rest: Any) -> None:
            save(trainer, *rest)
            torch.save(trainer.model.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits, logits)

        checkpoints.save_result = save_and_ask  # type: ignore[assignment]

    lora = run | {"model": model, "lora": {"r": 4, "target_modules": "all-linear"}}
    first = attempts.make(tmp_path / "first", _with(lora, max_steps=2), before=on_the_host, stop=True)
    second = attempts.make(
        tmp_path / "second", _with(lora, max_steps=2), before=on_the_host, resume=first.checkpoint(1)
    )
    assert second.code == 0, (second.folder / "stderr.log").read_text()
    for folder in (first.checkpoint(1), second.folder / "output"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("../models/tiny", None)
        assert str(tmp_path) not in (folder / "README.md").read_text()
    assert json.loads((second.folder / "output" / "relay.json").read_text())["model"] == "../models/tiny"
    shutil.rmtree(host)

    def same_as_trained() -> int:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        warnings.resetwarnings()  # the tests make errors of them
        base: Any = AutoModelForCausalLM.from_pretrained(work / "model")
        loaded = PeftModel.from_pretrained(base, str(second.folder / "output")).eval()
        return int(not torch.equal(loaded(input_ids=torch.tensor([[5, 6, 7]])).logits, torch.load(logits)))

    loading = attempts.fork(same_as_trained, tmp_path / "loading.log")
    assert attempts.ended(loading) == 0, (tmp_path / "loading.log").read_text()


def test_a_checkpoint_holds_what_another_host_needs(run: dict[str, Any], tmp_path: Path) -> None:
    attempt = attempts.make(tmp_path / "run", run, stop=True)
    folder = attempt.checkpoint(1)
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert "training_args.bin" not in names
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir()), "readable to others on the host"
    assert list(folder.parent.glob(".tmp-*")) == []


def test_checkpoints_by_time(run: dict[str, Any], tmp_path: Path) -> None:
    """Every step takes longer than a microsecond; none takes an hour, and the last step is saved all the same."""
    options = _with(run, max_steps=3)
    often = attempts.make(tmp_path / "often", options | {"checkpoint": {"every": "0.000001s"}})
    assert often.steps_saved == [1, 2, 3]
    seldom = attempts.make(tmp_path / "seldom", options | {"checkpoint": {"every": "1h"}})
    assert seldom.steps_saved == [3]


def test_a_damaged_checkpoint_is_refused(run: dict[str, Any], tmp_path: Path) -> None:
    """F16."""
    attempt = attempts.make(tmp_path / "first", run, stop=True)
    weights = attempt.checkpoint(1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    again = attempts.make(tmp_path / "second", run, resume=attempt.checkpoint(1))
    assert again.outcome is not None
    assert (again.code, "model.safetensors has the wrong size" in again.outcome.message) == (1, True)


def test_a_checkpoint_of_other_options_is_refused(run: dict[str, Any], tmp_path: Path) -> None:
    """The libraries would skip the wrong rows without an error."""
    first = attempts.make(tmp_path / "first", run, stop=True)
    other = attempts.make(tmp_path / "other", _with(run, per_device_train_batch_size=2), resume=first.checkpoint(1))
    assert other.outcome is not None
    said = "per_device_train_batch_size 2 x gradient_accumulation_steps 1 x 1 process is 2 rows a step"
    assert (other.code, said in other.outcome.message) == (78, True)

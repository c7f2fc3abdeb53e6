"""Whatever shards a model: the result and every checkpoint hold weights that libraries load, and a resume is exact."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runfile import RunFileErrors, parse_run_file
from storage.loadable import find_missing_parts
from tests.trainers import attempts
from tests.trainers.deferred import deferred_imports
from tests.trainers.sharding import FRAMEWORKS, HAS_DEEPSPEED, ROWS, check_everything, is_whole, prepare_ranks
from tests.trainers.specs import spec
from trainers.errors import ConfigError
from trainers.launch import ranks

with deferred_imports():
    from trainers import fingerprint, resumable, sharding
    from trainers.models import hub

FSDP2 = {"fsdp_config": {"fsdp_version": 2}}
ZERO3 = {"deepspeed_config": {"zero_stage": 3}}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("framework", "processes", "lora"), ROWS)
def test_weights_are_loadable_and_resumes_exact(
    framework: str, processes: int, lora: bool, work: Path, tmp_path: Path
) -> None:
    if framework.startswith("ZeRO") and not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    found = check_everything(framework, processes, lora, work, tmp_path)
    assert is_whole(found, lora), found


#: Run when an interpreter starts: each rank that the launcher has started takes CPUs.
ON_CPUS = """
import os

if "LOCAL_RANK" in os.environ:
    from tests.trainers.sharding import take_cpus

    take_cpus()
"""


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("framework", ["FSDP2", "ZeRO-3"])
def test_the_launcher_itself(framework: str, processes: int, work: Path, tmp_path: Path) -> None:
    """The command that a user gives, down to torchrun: what it leaves can be loaded, and is resumed from its middle."""
    if framework.startswith("ZeRO") and not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    (tmp_path / "sitecustomize.py").write_text(ON_CPUS)
    run = spec(work, "sft", launch=FRAMEWORKS[framework], name="run", resources={"require_cuda": False})
    (tmp_path / "run.json").write_text(json.dumps(run | {"checkpoint": {"every": "3 steps", "keep": {"last": 4}}}))
    environ = os.environ | {"PYTHONPATH": str(tmp_path), "RELAY_GPUS": str(processes), "OMP_NUM_THREADS": "1"}

    def train(home: str) -> Path:
        argv = [sys.executable, "-m", "trainers", "train", "run.json", "--runs", home]
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / home / "run"

    straight = train("straight")
    shards = "pytorch_model_fsdp_0/*.distcp" if framework == "FSDP2" else "global_step3/*optim_states.pt"
    middle = straight / "ckpt" / "step_00000003"
    assert len(list(middle.glob(shards))) == processes
    shutil.copytree(middle, tmp_path / "resumed" / "run" / "ckpt" / middle.name)
    resumed = train("resumed")
    for folder in (straight / "output", middle, resumed / "output"):
        assert find_missing_parts(folder) == []
    weights = [(home / "output" / "model.safetensors").read_bytes() for home in (straight, resumed)]
    assert weights[0] == weights[1]


def lose_weights(name: str) -> None:
    """Have this process save everything but a file."""
    save = resumable.ResumableTrainer.save_model

    def save_less(self: Any, folder: str | None = None, _internal_call: bool = False) -> None:
        save(self, folder, _internal_call)
        Path(folder or "", name).unlink()

    resumable.ResumableTrainer.save_model = save_less  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("every", ["1 steps", "9 steps"])
def test_nothing_is_kept_without_loadable_weights(run: dict[str, Any], tmp_path: Path, every: str) -> None:
    """The last guard, whatever a framework saved: no checkpoint is reported, and the run does not succeed."""
    run["options"] |= {"max_steps": 1}
    if every != "1 steps":  # the last step is saved as well: only its checkpoint may be whole
        run["lora"] = {"r": 4, "target_modules": "all-linear"}
    name = "model.safetensors" if every == "1 steps" else "adapter_model.safetensors"
    made = attempts.make(tmp_path / "a", run | {"checkpoint": {"every": every}}, before=partial(lose_weights, name))
    assert made.outcome is not None
    assert (made.code, made.steps_saved) == (78, [])
    assert made.outcome.message == (
        f"launch or options: step_00000001 would hold no model that can be loaded, so it is not kept: {name} is missing"
    )
    assert not (made.folder / "output").exists() and not list((made.folder / "staging").glob("step_*"))


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ({"fsdp_config": {}}, "launch.fsdp_config: is FSDP1, which does not resume an adapter; fsdp_version: 2 does"),
        ({"fsdp_config": {"fsdp_version": 2}}, ""),
        (
            {"deepspeed_config": {"zero_stage": 3, "zero3_save_16bit_model": False}},
            "zero3_save_16bit_model: must be true",
        ),
        ({"deepspeed_config": {"zero_stage": 3}}, ""),
    ],
)
def test_what_would_leave_no_weights_is_refused_at_submit(run: dict[str, Any], launch: Any, said: str) -> None:
    run |= {"launch": launch, "lora": {"r": 4}}
    if not said:
        parse_run_file(run)
        return
    with pytest.raises(RunFileErrors) as refused:
        parse_run_file(run)
    assert said in str(refused.value)


def test_fsdp1_is_not_sharded_on_disk(run: dict[str, Any]) -> None:
    """Its optimizer would silently begin anew at a resume."""
    run["launch"] = {"fsdp_config": {"fsdp_version": 1, "fsdp_state_dict_type": "SHARDED_STATE_DICT"}}
    with pytest.raises(RunFileErrors, match="with which FSDP1 does not resume the optimizer; add fsdp_version: 2"):
        parse_run_file(run)


@pytest.mark.parametrize(
    ("given", "gathers"),
    [({"zero_stage": 3}, True), ({"zero_stage": 2}, True), ({"deepspeed_config_file": "ds.json"}, None)],
)
def test_zero3_is_told_to_gather(tmp_path: Path, given: dict[str, Any], gathers: bool | None) -> None:
    """A file of DeepSpeed's own says everything itself: accelerate takes nothing beside it."""
    ranks.build_command(2, 1, {"deepspeed_config": given}, tmp_path)
    written = json.loads((tmp_path / "accelerate.json").read_text())["deepspeed_config"]
    assert written == ({"zero3_save_16bit_model": True, **given} if gathers else given)


@pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed")
@pytest.mark.thorough
def test_a_file_of_deepspeed_that_does_not_gather_is_refused(run: dict[str, Any], tmp_path: Path) -> None:
    settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto"}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    run["launch"] = {"deepspeed_config": {"deepspeed_config_file": str(tmp_path / "ds.json")}}
    before = prepare_ranks(run["launch"], 2, tmp_path)
    made = attempts.make(tmp_path / "a", run, ranks=2, before=before)
    assert made.outcome is not None and made.code == 78
    assert "ZeRO-3 would save no weights that can be loaded; set zero3_save_16bit_model: true" in made.outcome.message


@pytest.mark.parametrize(
    ("shards", "launch", "said"),
    [
        ("pytorch_model_fsdp_0", {}, "was saved with launch.fsdp_config, and the run has none"),
        ("pytorch_model_fsdp.bin", ZERO3, "was saved with launch.fsdp_config, and the run has none"),
        ("optimizer.pt", FSDP2, "holds nothing of launch.fsdp_config, and the run asks for it"),
        ("global_step4", {}, "was saved with launch.deepspeed_config, and the run has none"),
    ],
)
def test_another_frameworks_shards_are_refused(tmp_path: Path, shards: str, launch: Any, said: str) -> None:
    (tmp_path / shards).touch()
    with pytest.raises(ConfigError, match=said):
        sharding.require_shards(tmp_path, launch)


@pytest.mark.parametrize(
    ("launch", "bound"),
    [
        ({}, []),
        (FSDP2, []),
        ({"fsdp_config": {}}, []),
        (ZERO3, ["deepspeed_config"]),
        ({**FSDP2, "parallelism_config": {}}, ["fsdp_config", "parallelism_config"]),
    ],
)
def test_what_resumes_with_as_many_processes_only(launch: Any, bound: list[str]) -> None:
    assert sharding.list_bound_sections(launch) == bound


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_fsdp2_resumes_with_another_number_of_processes(work: Path, tmp_path: Path, before: int, now: int) -> None:
    """Shards are cut anew; the rows and the rates go on where they were, and the loss ends where it would have."""
    run = spec(work, "sft", launch=FRAMEWORKS["FSDP2"])
    run["options"] |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    prepared = {count: prepare_ranks(run["launch"], count, tmp_path / f"launch-{count}") for count in (before, now)}
    first = attempts.make(tmp_path / "straight", run, ranks=before, before=prepared[before])
    second = attempts.make(tmp_path / "resumed", run, ranks=now, before=prepared[now], resume=first.checkpoint(3))
    assert (first.code, second.code) == (0, 0), second.outcome
    [said] = [event["fidelity"] for event in second.events if event["type"] == "resume"]
    assert said == "close"
    assert second.curve[6, "learning_rate"] == first.curve[6, "learning_rate"]
    assert second.curve[6, "eval_loss"] == pytest.approx(first.curve[6, "eval_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, FSDP2),
        (FSDP2, {"fsdp_config": {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}}),
        ({"deepspeed_config": {"zero_stage": 2}}, ZERO3),
    ],
)
def test_what_shards_belongs_to_the_fingerprint(run: dict[str, Any], before: Any, now: Any) -> None:
    first, second = (
        fingerprint.fingerprint_of(parse_run_file(run | {"launch": launch}), hub.ModelSource("m", None, "m"), "rows")
        for launch in (before, now)
    )
    with pytest.raises(ConfigError, match=r"step_1 was saved by a run that trained something else: launch was"):
        fingerprint.require_same_run(Path("step_1"), first, second)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({}, []),
        ({"config.json": None}, ["config.json or adapter_config.json is missing"]),
        ({"tokenizer_config.json": None}, ["tokenizer_config.json is missing"]),
        ({"model.safetensors": None}, ["model.safetensors is missing"]),
        ({"model.safetensors": b"\x08\0\0\0\0\0\0\0{}      "}, ["model.safetensors holds no tensors"]),
        ({"model.safetensors": b""}, ["model.safetensors is missing or no safetensors file"]),
    ],
)
def test_what_a_folder_lacks(
    tiny_model: Path, tmp_path: Path, damage: dict[str, bytes | None], said: list[str]
) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name, content in damage.items():
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    assert find_missing_parts(tmp_path) == said


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"model.norm.weight": [0]}, "model.norm.weight is empty"),  # what ZeRO-3 leaves of a weight that is elsewhere
        ({"_fsdp_wrapped_module.lm_head.weight": [1]}, "no library has _fsdp_wrapped_module.lm_head.weight"),
    ],
)
def test_what_is_no_weight(tiny_model: Path, tmp_path: Path, tensors: dict[str, list[int]], said: str) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert find_missing_parts(tmp_path) == [f"model.safetensors: {said}"]


def test_an_index_must_find_what_it_names(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_missing_parts(tmp_path) == [
        "model-00002-of-00002.safetensors is missing or no safetensors file",
        "b is in no file",
    ]

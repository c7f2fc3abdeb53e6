"""What only a GPU can show, in parts of at most two minutes each: `python -m benchmarks.gpu [part …]`, or `make gpu`.

Each part trains a Llama with random weights, made on the spot, by the command that a user would give
(`python -m trainers`). It is skipped, with the reason, where this host has no GPU or lacks a package. After each part
the results so far are written as JSON and as a table; parts that are run again replace their results.

With `--cpu` every part is run as far as a CPU goes, with a tiny model: what needs a GPU is left out of its run file,
and the result says what. It shows that the parts work; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.report import Table, machine
from runfile import parse_run_file
from storage.loadable import find_missing_parts
from trainers.launch.ranks import cpu_environment

LIMIT = 120.0  #: seconds that a part may take
TOLERANCE = 0.01  #: the part of the loss by which a resumed run may end elsewhere and still be called close
RESULTS = Path(".build/gpu.json")  #: where results are written, and the table beside them

RunFile = dict[str, Any]
_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
_BF16 = {"dtype": "bfloat16", "attn_implementation": "sdpa"}
_FSDP2 = {"fsdp_config": {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
_REWARDS = """
def score(completions, **_):
    return [len(each) / 100 for each in completions]
"""
#: What a CPU cannot train with: a key of the run file, and what stands there instead (None: nothing).
_LEFT_OUT_ON_CPUS: Mapping[tuple[str, ...], Any] = {
    ("launch",): None,
    ("quantization",): None,
    ("options", "use_vllm"): None,
    ("options", "vllm_mode"): None,
    ("options", "vllm_gpu_memory_utilization"): None,
    ("model_init", "attn_implementation"): "sdpa",
}


class PartFailed(Exception):
    """A part did not come out as it should, and why."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the trainings are: on a GPU large enough to keep it busy, on a CPU as small as can be."""

    model: str  #: one of `benchmarks.workload.SIZES`
    length: int  #: tokens in a row
    batch: int  #: rows in a step
    steps: int


GPU, CPU = Scale("medium", 1024, 8, 40), Scale("tiny", 32, 4, 6)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a part runs, and until when."""

    folder: Path  #: empty, for this part; the model and the rows lie beside it
    scale: Scale
    cpu: bool
    deadline: float  #: of `time.monotonic`

    def run(self, argv: Sequence[str]) -> None:
        """Run a command to its end. Raises PartFailed with its last line, or when the part's time is over."""
        log = self.folder / "log"
        calm = cpu_environment(None if self.cpu else 1)  # for the bare script too
        with log.open("ab") as output:
            try:
                left = max(self.deadline - time.monotonic(), 0.0)
                code = subprocess.run(
                    argv, cwd=self.folder, env={**calm, **os.environ}, stdout=output, stderr=output, timeout=left
                ).returncode
            except subprocess.TimeoutExpired:
                raise PartFailed(f"takes longer than {LIMIT:.0f} s") from None
        if code:
            raise PartFailed(log.read_text(errors="replace").strip().rpartition("\n")[2] or f"exit code {code}")

    def train(self, run: RunFile, home: str, resume: Path | None = None) -> Training:
        """Train a run in the folder `home`, from the beginning or from a checkpoint."""
        kept = self.folder / home / "run" / "ckpt"
        if resume is not None:
            shutil.copytree(resume, kept / resume.name)
        (self.folder / "run.json").write_text(json.dumps(run))
        self.run([sys.executable, "-m", "trainers", "train", "run.json", "--runs", home])
        return Training(self.folder / home / "run")


@dataclass(frozen=True, slots=True)
class Training:
    """What one training left in its folder."""

    home: Path

    @property
    def output(self) -> Path:
        return self.home / "output"

    @property
    def logs(self) -> list[tuple[int, float, Mapping[str, float]]]:
        """The step, the time in seconds and the values of every log that has a loss or a reward."""
        lines = (self.home / "attempts" / "1" / "events.jsonl").read_text().splitlines()
        events = [event for event in map(json.loads, lines) if event["type"] == "metric"]
        return [
            (event["step"], datetime.fromisoformat(event["time"]).timestamp(), event["values"])
            for event in events
            if {"train_loss", "reward"} & set(event["values"])
        ]

    def peak(self, name: str) -> float | None:
        """Return the greatest value of a metric, or None where it was never logged."""
        return max((values[name] for _, _, values in self.logs if name in values), default=None)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to show: the run file's changes, what they need, and how it is shown."""

    title: str
    show: Callable[[Bench, RunFile], dict[str, Any]]
    changes: RunFile
    packages: tuple[str, ...] = ()
    method: str = "sft"


@dataclass(slots=True)
class Result:
    """What became of a part."""

    part: str
    title: str
    status: str  #: passed, failed or skipped
    seconds: float = 0.0
    reason: str = ""
    left_out: list[str] = field(default_factory=list)  #: of the run file, on a CPU
    figures: dict[str, Any] = field(default_factory=dict)


def cut_and_resume(bench: Bench, run: RunFile) -> dict[str, Any]:
    """Train once without an interruption and once from the checkpoint in its middle, and compare the weights."""
    straight = bench.train(run, "straight")
    half = bench.scale.steps // 2
    resumed = bench.train(run, "resumed", straight.home / "ckpt" / f"step_{half:08d}")
    if missing := find_missing_parts(resumed.output):
        raise PartFailed(f"the result cannot be loaded: {'; '.join(missing)}")
    apart, ends = (
        _largest_difference(straight.output, resumed.output),
        [_last_loss(each) for each in (straight, resumed)],
    )
    if not abs(ends[0] - ends[1]) <= TOLERANCE * abs(ends[0]):
        raise PartFailed(f"the resumed run ends at a loss of {ends[1]}, and the straight one at {ends[0]}")
    return {
        "exact": apart == 0.0,
        "largest difference of a weight": apart,
        "loss": ends,
        "tokens/s": _tokens_per_second(bench.scale, [(step, at) for step, at, _ in straight.logs]),
        "GPU memory, GB": straight.peak("gpu_memory_peak_gb") or straight.peak("gpu_memory_allocated_gb"),
    }


def compare_with_bare(bench: Bench, run: RunFile) -> dict[str, Any]:
    """Train the same with Relay and with the bare TRL script, in turns, and compare their tokens per second."""
    (bench.folder / "bare.json").write_text(json.dumps({**run, "data": {"train": run["data"]["train"][0]["path"]}}))
    bare = []
    for turn in ("before", "after"):
        bench.run([sys.executable, "-m", "benchmarks.bare_sft", "bare.json", turn])
        bare.append(_tokens_per_second(bench.scale, json.loads((bench.folder / turn / "logged.json").read_text())))
        if turn == "before":
            ours = bench.train(run, "ours")
    speed = _tokens_per_second(bench.scale, [(step, at) for step, at, _ in ours.logs])
    return {"tokens/s": speed, "bare TRL, tokens/s": bare, "Relay / bare": round(speed * len(bare) / sum(bare), 3)}


def learn_from_completions(bench: Bench, run: RunFile) -> dict[str, Any]:
    """Train on completions of the model's own. vLLM's sampling is part of no checkpoint, so nothing is resumed."""
    trained = bench.train(run, "straight")
    if missing := find_missing_parts(trained.output):
        raise PartFailed(f"the result cannot be loaded: {'; '.join(missing)}")
    rewards = [values["reward"] for _, _, values in trained.logs if "reward" in values]
    return {"reward, first and last": [rewards[0], rewards[-1]], "steps": trained.logs[-1][0]}


def _largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference between the weights in two folders."""
    from safetensors.torch import load_file

    apart = 0.0
    for path in one.glob("*.safetensors"):
        left, right = load_file(path), load_file(other / path.name)
        apart = max([apart, *(float((left[name].float() - right[name].float()).abs().max()) for name in left)])
    return apart


def _last_loss(trained: Training) -> float:
    return [values["train_loss"] for _, _, values in trained.logs if "train_loss" in values][-1]


def _tokens_per_second(scale: Scale, logs: Sequence[tuple[int, float]]) -> float:
    """Return the speed between the first log and the last; every row has as many tokens."""
    (first, begun), (last, ended) = logs[0], logs[-1]
    return round((last - first) * scale.batch * scale.length / (ended - begun), 1)


PARTS: Mapping[str, Part] = {
    "sft": Part("SFT, LoRA in bf16, sdpa: cut and resumed", cut_and_resume, {"lora": _LORA, "model_init": _BF16}),
    "speed": Part("SFT, LoRA in bf16, sdpa: beside bare TRL", compare_with_bare, {"lora": _LORA, "model_init": _BF16}),
    "fsdp2": Part("FSDP2 on one GPU: cut and resumed", cut_and_resume, {"launch": _FSDP2}),
    "qlora": Part("QLoRA: cut and resumed", cut_and_resume, {"preset": "qlora"}, ("bitsandbytes",)),
    "flash": Part(
        "flash attention: cut and resumed",
        cut_and_resume,
        {"lora": _LORA, "model_init": {"dtype": "bfloat16", "attn_implementation": "flash_attention_2"}},
        ("flash_attn",),
    ),
    "vllm": Part(
        "GRPO, completions by vLLM",
        learn_from_completions,
        {"options": {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.2}},
        ("vllm",),
        "grpo",
    ),
    "zero3": Part(
        "DeepSpeed ZeRO-3 on one GPU: cut and resumed",
        cut_and_resume,
        {"launch": {"deepspeed_config": {"zero_stage": 3}}},
        ("deepspeed",),
    ),
}


def make_run(part: Part, scale: Scale) -> RunFile:
    """Return the part's run file, resolved. Paths are relative to the folder in which it lies."""
    options: RunFile = {
        "max_steps": scale.steps,
        "logging_steps": 1 if part.method == "grpo" else max(scale.steps // 8, 1),
        "per_device_train_batch_size": scale.batch,
        "gradient_checkpointing": False,
        "learning_rate": 1e-4,
    }
    if part.method == "grpo":
        options |= {"num_generations": scale.batch, "max_completion_length": min(scale.length, 64)}
    else:
        options |= {"max_length": scale.length}
    spec = {
        "version": "relay/v1",
        "name": "run",
        "method": part.method,
        "model": {"name_or_path": "../model"},
        "data": {"train": f"../{'prompts' if part.method == 'grpo' else 'rows'}.jsonl"},
        "checkpoint": {"every": f"{scale.steps // 2} steps", "keep": {"last": 4}},
        "resources": {"gpus_per_node": 1},
        **({"rewards": [{"call": "../rewards.py:score"}], "files": ["../rewards.py"]} if part.method == "grpo" else {}),
        **part.changes,
        "options": options | part.changes.get("options", {}),
    }
    resolved: RunFile = json.loads(parse_run_file(spec).to_json())
    return resolved


def leave_out_on_cpus(run: RunFile) -> list[str]:
    """Take out of a run file what needs a GPU, and return what it was."""
    run["resources"] = {**run.get("resources", {}), "gpus_per_node": 0, "require_cuda": False}
    run["preset"] = [each for each in run.get("preset") or [] if each != "qlora"]
    found = []
    for (*sections, key), instead in _LEFT_OUT_ON_CPUS.items():
        place: Any = run
        for section in sections:
            place = place.get(section) or {}
        if place.get(key) in (None, {}, instead):
            continue
        found.append(".".join((*sections, key)))
        if instead is None:
            del place[key]
        else:
            place[key] = instead
    return found


def prepare(folder: Path, scale: Scale) -> None:
    """Make what all parts share: the model, rows of as many tokens each, prompts and a reward."""
    subprocess.run([sys.executable, "-m", "benchmarks.workload", str(folder / "model"), scale.model], check=True)
    count = scale.batch * scale.steps
    rows = [{"text": (f"{number:05d} " * scale.length)[: scale.length]} for number in range(count)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prompts = [{"prompt": f"{number:05d} "} for number in range(count)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
    (folder / "rewards.py").write_text(_REWARDS)


def run_part(name: str, root: Path, *, cpu: bool, gpus: int) -> Result:
    """Run one part in a folder of its own below `root`, where `prepare` has been."""
    part, begun = PARTS[name], time.monotonic()
    result = Result(name, part.title, "skipped", reason=find_obstacle(part, cpu=cpu, gpus=gpus))
    if result.reason:
        return result
    scale, folder = CPU if cpu else GPU, root / name
    folder.mkdir()
    run = make_run(part, scale)
    result.left_out = leave_out_on_cpus(run) if cpu else []
    try:
        result.figures = part.show(Bench(folder, scale, cpu, begun + LIMIT), run)
        result.status = "passed"
    except PartFailed as error:
        result.status, result.reason = "failed", str(error)
    result.seconds = round(time.monotonic() - begun, 1)
    return result


def find_obstacle(part: Part, *, cpu: bool, gpus: int) -> str:
    """Return why the part cannot be run here, in words, or an empty text."""
    if cpu:
        return ""
    if not gpus:
        return "there is no GPU here"
    return ", ".join(f"the package {name} is not installed" for name in part.packages if find_spec(name) is None)


def write_results(path: Path, fresh: Sequence[Result]) -> Table:
    """Write these results and those of earlier parts beside them, and return the table of all."""
    earlier = json.loads(path.read_text())["results"] if path.is_file() else []
    found = {each["part"]: each for each in [*earlier, *map(asdict, fresh)]}
    ordered = [found[name] for name in PARTS if name in found]
    libraries = ("torch", "transformers", "trl", "peft", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in libraries}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"machine": machine(), "versions": versions, "results": ordered}, indent=2) + "\n")
    draft.replace(path)
    rows = [
        (each["part"], each["title"], each["status"], f"{each['seconds']:.0f} s", _describe(each)) for each in ordered
    ]
    table = Table(f"What a GPU can show, on {machine()}", ("part", "what", "", "took", ""), rows)
    path.with_suffix(".md").write_text(str(table))
    return table


def _describe(result: Mapping[str, Any]) -> str:
    figures = [f"{name}: {value}" for name, value in result["figures"].items() if value is not None]
    without = [f"on a CPU, without {', '.join(result['left_out'])}"] if result["left_out"] else []
    return "; ".join([*filter(None, [result["reason"]]), *figures, *without])


def count_gpus() -> int:
    """Return the number of GPUs, asked of the driver's management library."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    return int(pynvml.nvmlDeviceGetCount())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 when one failed."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of: {', '.join(PARTS)} (all of them)")
    parser.add_argument("--cpu", action="store_true", help="as far as a CPU goes: do the parts work?")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"write results here (default: {RESULTS})")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    names, gpus = arguments.parts or list(PARTS), 0 if arguments.cpu else count_gpus()
    done: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="relay-gpu-") as folder:
        root = Path(folder)
        if arguments.cpu or gpus:
            prepare(root, CPU if arguments.cpu else GPU)
        for name in names:
            done.append(run_part(name, root, cpu=arguments.cpu, gpus=gpus))
            print(f"{name}: {done[-1].status} {_describe(asdict(done[-1]))}", file=sys.stderr, flush=True)
            table = write_results(arguments.results, done)
    print(table)
    return int(any(each.status == "failed" for each in done))


if __name__ == "__main__":
    sys.exit(main())

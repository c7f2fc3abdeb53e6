"""What each method and each passed-through feature does on this machine: `make matrix` writes it into docs/methods.md.

A cell says `ran` (trained two steps and left a result), `constructed` (this machine cannot train with it, but the
library's config accepted it), or what went wrong.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests import tiny
from tests.trainers.specs import LORA, fill, spec
from trainers import methods

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
TIMEOUT = 300.0  #: seconds

Changes = Mapping[str, Any]
#: What is asked for beside the plain run, of which method.
FEATURES: Mapping[str, tuple[str, Changes]] = {
    "packing": ("sft", {"options": {"packing": True, "max_length": 64}}),
    "accumulation": ("sft", {"options": {"gradient_accumulation_steps": 2}}),
    "recomputation (`gradient_checkpointing`)": ("sft", {"options": {"gradient_checkpointing": True}}),
    "bfloat16 weights": ("sft", {"model_init": {"dtype": "bfloat16"}}),
    "bfloat16 (`options.bf16`)": ("sft", {"options": {"bf16": True}}),
    "`torch_compile`": ("sft", {"options": {"torch_compile": True}}),
    "DoRA (`lora.use_dora`)": ("sft", {"lora": {**LORA, "use_dora": True}}),
    "vLLM, colocated": ("grpo", {"options": {"use_vllm": True, "vllm_mode": "colocate"}}),
    "vLLM, served": ("grpo", {"options": {"use_vllm": True, "vllm_mode": "server"}}),
    "QLoRA": ("sft", {"preset": "qlora"}),
    "flash attention": ("sft", {"model_init": {"attn_implementation": "flash_attention_2"}}),
    "kernels (`model_init.use_kernels`)": ("sft", {"model_init": {"use_kernels": True}}),
    "FSDP2": ("sft", {"launch": {"fsdp_config": {"fsdp_version": 2}}}),
    "DeepSpeed": ("sft", {"launch": {"deepspeed_config": {"zero_stage": 2}}}),
    "context parallelism": ("sft", {"launch": {"parallelism_config": {"parallelism_config_cp_size": 2}}}),
}


def main() -> int:
    """Run everything and write the tables; return 1 when a method did not run."""
    with tempfile.TemporaryDirectory(prefix="relay-matrix-") as folder, ThreadPoolExecutor(_at_once()) as pool:
        work = Path(folder)
        tiny.make_model(work / "model")
        fill(work)
        cells = {
            (method, lora, ranks): pool.submit(_cell, work, method, lora, ranks) for method, lora, ranks in _cells()
        }
        features = {name: pool.submit(_outcome, work, *asked) for name, asked in FEATURES.items()}
        ran = {cell: future.result() for cell, future in cells.items()}
        lines = [*_methods(ran), "", *_features({name: future.result() for name, future in features.items()})]
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{rest.partition(END)[2]}")
    print("\n".join(lines))
    return int(any(outcome != "ran" for outcome in ran.values()))


def _cells() -> Iterator[tuple[str, bool, int]]:
    for method in methods.NAMES:
        for lora in (False, True):
            yield from ((method, lora, ranks) for ranks in (1, 2))


def _at_once() -> int:
    return max(len(os.sched_getaffinity(0)) // 2, 1)


def _cell(work: Path, method: str, lora: bool, ranks: int) -> str:
    return _outcome(work, method, {"lora": LORA} if lora else {}, ranks)


def _outcome(work: Path, method: str, changes: Changes, ranks: int = 1) -> str:
    """Return the outcome in one word, or the reason."""
    options = {**changes.get("options", {}), "max_steps": 2, "logging_steps": 1, "eval_steps": 2}
    run = spec(work, method, **{**changes, "options": options}) | {"checkpoint": {"every": "2 steps"}}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        (Path(folder) / "run.json").write_text(json.dumps(run))
        said = _trainers(folder, ranks, "train")
        if said is None:
            return "ran"
        if " needs " in said and _trainers(folder, 1, "configure") is None:
            return "constructed"
    return said


def _trainers(folder: str, ranks: int, verb: str) -> str | None:
    """Return None on success, else the last line."""
    argv = [sys.executable, "-m", "trainers", verb, "run.json"]
    if verb == "configure":
        argv = [sys.executable, "-m", "tests.trainers.matrix", "configure", "run.json"]
    environ = os.environ | {"RELAY_GPUS": str(ranks) if ranks > 1 else "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, timeout=TIMEOUT)
    return None if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"


def configure(path: Path) -> int:
    """Construct the library's config only, on a machine that cannot train with it."""
    from runfile import parse_run_file
    from trainers.runtime import owned_options

    run = parse_run_file(json.loads(path.read_text()))
    methods.load_method(run.method).configure(run, owned_options(run, tempfile.gettempdir()))
    return 0


def _methods(ran: Mapping[tuple[str, bool, int], str]) -> Iterator[str]:
    yield "| method | all weights | LoRA | all weights, two processes | LoRA, two processes |"
    yield "| --- | --- | --- | --- | --- |"
    for method in methods.NAMES:
        cells = [ran[method, lora, ranks] for ranks in (1, 2) for lora in (False, True)]
        yield f"| `{method}` | {' | '.join(cells)} |"


def _features(outcomes: Mapping[str, str]) -> Iterator[str]:
    yield "| feature | |"
    yield "| --- | --- |"
    yield from (f"| {name} | {outcome} |" for name, outcome in outcomes.items())


if __name__ == "__main__":
    sys.exit(configure(Path(sys.argv[2])) if sys.argv[1:2] == ["configure"] else main())

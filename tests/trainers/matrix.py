"""What each method and each passed-through feature does on this machine: `make matrix` writes it into docs/methods.md.

A cell says `ran` (trained two steps and left a result), `constructed` (this machine cannot train with it, but the
library's config accepted it), or what went wrong.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests import tiny
from tests.trainers.orders import CUTS, EXACT, ORDERS, cut_everywhere
from tests.trainers.sharding import COLUMNS, HAS_DEEPSPEED, NONE, ROWS, check_everything, is_whole
from tests.trainers.specs import LORA, fill, spec
from tests.trainers.worlds import CHANGES, CLOSE, EXPECTED, WORLDS, change_world
from trainers import methods

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"
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


def main(arguments: Sequence[str]) -> int:
    """Write the tables that are asked for; return 1 when something did not come out as it should."""
    parser = argparse.ArgumentParser(prog="tests.trainers.matrix", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(TABLES), help="write this table (default: all)")
    parts = parser.parse_args(arguments).only or list(TABLES)
    good = True
    with tempfile.TemporaryDirectory(prefix="relay-matrix-") as folder:
        work = Path(folder)
        tiny.make_model(work / "model")
        fill(work)
        for part in parts:
            lines, succeeded = TABLES[part](work)
            good &= succeeded
            _write(part, lines)
            print("\n".join(lines))
    return int(not good)


def _write(part: str, lines: Sequence[str]) -> None:
    """Put a table where the document marks its place."""
    begin, end = f"<!-- matrix: {part} -->", f"<!-- /matrix: {part} -->"
    before, _, rest = DOCUMENT.read_text().partition(begin)
    DOCUMENT.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{rest.partition(end)[2]}"]))


def _write_methods(work: Path) -> tuple[list[str], bool]:
    """Train two steps of each method."""
    with ThreadPoolExecutor(_at_once()) as pool:
        cells = {
            (method, lora, ranks): pool.submit(_cell, work, method, lora, ranks) for method, lora, ranks in _cells()
        }
        ran = {cell: future.result() for cell, future in cells.items()}
    return list(_methods(ran)), all(outcome == "ran" for outcome in ran.values())


def _write_features(work: Path) -> tuple[list[str], bool]:
    """Train two steps with each feature."""
    with ThreadPoolExecutor(_at_once()) as pool:
        features = {name: pool.submit(_outcome, work, *asked) for name, asked in FEATURES.items()}
        return list(_features({name: future.result() for name, future in features.items()})), True


def _write_epochs(work: Path) -> tuple[list[str], bool]:
    """Cut a run of three epochs everywhere, for all that decides the order of its rows."""
    lines, exact = [f"| order | cut {' | '.join(CUTS)} |", f"| --- {'| --- ' * len(CUTS)}|"], True
    for order in ORDERS:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            found = cut_everywhere(order, work, Path(folder))
        lines.append(f"| {order} | {' | '.join(each.strip().rpartition(chr(10))[2] for each in found.values())} |")
        exact &= set(found.values()) == {EXACT}
    return lines, exact


def _write_worlds(work: Path) -> tuple[list[str], bool]:
    """Cut a run and resume it on another number of processes, or with another micro-batch, for all that decides how
    its rows are split.
    """
    lines, expected = [f"| rows | {' | '.join(CHANGES)} |", f"| --- {'| --- ' * len(CHANGES)}|"], True
    for world in WORLDS:
        found = []
        for change in CHANGES:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                found.append(change_world(world, change, work, Path(folder)).strip().rpartition("\n")[2])
        lines.append(f"| {world} | {' | '.join(found)} |")
        expected &= found == [EXPECTED.get(world, {}).get(change, CLOSE) for change in CHANGES]
    return lines, expected


def _write_sharding(work: Path) -> tuple[list[str], bool]:
    """Train with every framework that shards a model, and use what it leaves in every way."""
    lines, good = [f"| framework | processes | weights | {' | '.join(COLUMNS)} |", f"| --- {'| --- ' * 6}|"], True
    for framework, processes, lora in ROWS:
        if framework.startswith("ZeRO") and not HAS_DEEPSPEED:
            found = dict.fromkeys(COLUMNS, "not run: deepspeed is not installed")
        else:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                found = check_everything(framework, processes, lora, work, Path(folder))
            good &= is_whole(found, lora)
        weights = "LoRA" if lora else "all"
        lines.append(
            f"| {framework} | {processes} | {weights} | {' | '.join(each or NONE for each in found.values())} |"
        )
    return lines, good


#: The tables of the document, in the order in which they are made: forks are cheap while nothing runs in threads.
TABLES: Mapping[str, Callable[[Path], tuple[list[str], bool]]] = {
    "epochs": _write_epochs,
    "worlds": _write_worlds,
    "sharding": _write_sharding,
    "methods": _write_methods,
    "features": _write_features,
}


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
    sys.exit(configure(Path(sys.argv[2])) if sys.argv[1:2] == ["configure"] else main(sys.argv[1:]))

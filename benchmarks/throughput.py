"""Tokens per second of SFT on rows of very different lengths: plain, packed, and with the preset `fast`.

A batch of rows is as wide as its longest row; packing fills blocks with rows, so that little is padding. Only real
tokens count. Each training is a fork of one process that has loaded the libraries; they take turns, and a ratio is to
the plain training of the same turn. TRL's own strategy (`bfd`) puts all blocks of a batch into one long sequence, which
gains with flash attention and loses without; `wrapped` cuts the stream of rows into blocks whose rows see each other.
"""

import json
import random
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import Table, interval
from benchmarks.trainer import measured, ours
from benchmarks.workload import Workload, prepare
from runfile import load_run_file

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"options": {"packing": True}},
    "packed, wrapped": {"options": {"packing": True, "packing_strategy": "wrapped"}},
}
LOG_EVERY = 5  #: steps
LONGEST = 256  #: tokens of a row


def measure(quick: bool) -> Table:
    """A row for each variant."""
    import trainers.methods.sft
    import trainers.runtime  # noqa: F401

    turns, steps = (2, 10) if quick else (6, 20)
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        root = Path(name)
        workloads = {name: _prepared(root / name, changes, steps) for name, changes in VARIANTS.items()}
        for turn in range(turns):
            for name in list(VARIANTS)[:: 1 if turn % 2 else -1]:
                speeds[name].append(_speed(workloads[name], root / f"{name}-{turn}"))
    rows = [
        (name, f"{median(found):,.0f}", str(interval([a / b for a, b in zip(found, speeds["plain"], strict=True)])))
        for name, found in speeds.items()
    ]
    title = f"SFT on rows of 16 to {LONGEST} tokens, {turns} turns of {steps} steps"
    return Table(title, ("", "tokens/s", "/ plain [interval]"), rows)


def _prepared(folder: Path, changes: dict[str, Any], steps: int) -> Workload:
    workload = prepare(folder, "small", steps=steps, log_every=LOG_EVERY, save_every=steps, threads=1)
    dice = random.Random(1)
    texts = ["x" * round(16 * (LONGEST / 16) ** dice.random()) for _ in range(2000)]  # many short ones, a few long
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    spec = workload.spec
    options = {**spec["options"], "max_length": LONGEST, **changes.get("options", {})}
    workload.run_file.write_text(json.dumps({**spec, **changes, "options": options}))
    workload.run_file.write_text(
        load_run_file(workload.run_file).to_json()
    )  # presets filled in, as an agent is given it
    return workload


def _speed(workload: Workload, folder: Path) -> float:
    """Real tokens per second between the first log and the last."""
    measured(partial(ours, workload, folder))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    logged = [event["values"] for event in events if event["type"] == "metric"]
    return median(float(values["tokens_per_second"]) for values in logged if "tokens_per_second" in values)

"""What Relay's SFT costs over the bare TRL script by itself: wall and CPU time of whole trainings without an agent.

Both train the same small model on the same rows with the same options and save once at the end. Each runs in a fork of
one process that has loaded the libraries, so start-up, which would hide the difference, is not included. There are ten
pairs, in alternating order. `overhead` includes all of Relay, and start-up too.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import bare_sft
from benchmarks.report import Table, interval
from benchmarks.workload import Workload, prepare
from trainers import rank
from trainers.environment import AttemptEnvironment
from trainers.launch.control import CONTROL_VARIABLE, PROCESSES_VARIABLE


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one training."""

    wall: float
    cpu: float


def measure(quick: bool) -> Table:
    """Ratios, and the difference for each step."""
    import trainers.methods.sft
    import trainers.runtime  # noqa: F401

    pairs, steps = (2, 10) if quick else (10, 80)
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        root = Path(name)
        workload = prepare(root / "in", "small", steps=steps, log_every=10, save_every=steps, threads=1)
        costs = [_pair(workload, root, number) for number in range(pairs)]
    wall = interval([ours.wall / bare.wall for ours, bare in costs])
    cpu = interval([ours.cpu / bare.cpu for ours, bare in costs])
    extra = interval([(ours.cpu - bare.cpu) / steps * 1000 for ours, bare in costs])
    whole = median(bare.cpu for _, bare in costs) / steps * 1000
    rows = [
        ("wall time, ours / bare", f"{wall}"),
        ("CPU time, ours / bare", f"{cpu}"),
        ("CPU of ours beyond the bare script's", f"{extra} ms a step, of {whole:.1f} ms"),
    ]
    title = f"The trainer alone, {pairs} pairs of {steps} steps"
    return Table(title, ("", f"median [{wall.confidence:.0%} interval]"), rows)


def _pair(workload: Workload, root: Path, number: int) -> tuple[Cost, Cost]:
    works = [("ours", ours), ("bare", bare)][:: 1 if number % 2 else -1]
    costs = {name: measured(partial(work, workload, root / f"{name}-{number}")) for name, work in works}
    return costs["ours"], costs["bare"]


def measured(work: Callable[[], object]) -> Cost:
    """The cost of `work` in a fork of this process."""
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"the training ended with {os.waitstatus_to_exitcode(status)}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


def ours(workload: Workload, folder: Path) -> None:
    folder.mkdir()
    os.chdir(workload.folder)
    contract = AttemptEnvironment(
        run_id="bench",
        attempt=1,
        run_file=workload.run_file,
        output=folder / "output",
        staging=folder / "staging",
        events=folder / "events.jsonl",
        resume_from=None,
        pins={},
    )
    os.environ |= contract.to_environ() | {CONTROL_VARIABLE: str(folder), PROCESSES_VARIABLE: "1"}
    sys.argv = ["rank"]
    if rank.main():
        raise RuntimeError("refused")


def bare(workload: Workload, folder: Path) -> None:
    os.chdir(workload.folder)
    bare_sft.train(json.loads(workload.run_file.read_text()), folder)

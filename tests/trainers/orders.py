"""Are runs that are cut in any epoch exact, whatever decides the order of their rows?"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import tiny
from tests.trainers import attempts
from tests.trainers.specs import METHODS, spec
from trainers.launch.control import CONTROL_VARIABLE

STEPS_PER_EPOCH = 4
#: Steps that a run is cut after, by where that is.
CUTS = {"in epoch 1": 2, "at its end": 4, "in epoch 2": 6, "in epoch 3": 11}
EXACT = "exact"

Changes = Mapping[str, Any]
HALVES: Changes = {"per_device_train_batch_size": 2}
STREAM: Changes = {"streaming": True}
#: What decides the order of rows: a method, with changes of its options and of its data, and the number of processes.
ORDERS: dict[str, tuple[str, Changes, Changes, int]] = {
    **{f"`{method}`": (method, {}, {}, 1) for method in METHODS},
    "sequential": ("sft", {"train_sampling_strategy": "sequential"}, {}, 1),
    "group_by_length": ("sft", {"train_sampling_strategy": "group_by_length"}, {}, 1),
    "batch_rebalance": ("sft", {"train_sampling_strategy": "batch_rebalance"}, {}, 1),
    "use_seedable_sampler: false": ("sft", {"accelerator_config": {"use_seedable_sampler": False}}, {}, 1),
    "two reading workers": ("sft", {"dataloader_num_workers": 2}, {}, 1),
    "accumulation": ("dpo", {**HALVES, "gradient_accumulation_steps": 2}, {}, 1),
    "two processes": ("sft", HALVES, {}, 2),
    "two processes, group_by_length": ("sft", {**HALVES, "train_sampling_strategy": "group_by_length"}, {}, 2),
    "two processes, answers": ("rloo", HALVES, {}, 2),
    "streaming": ("sft", {}, STREAM, 1),
    "streaming, pairs": ("dpo", {}, STREAM, 1),
    "streaming, accumulation": ("sft", {**HALVES, "gradient_accumulation_steps": 2}, STREAM, 1),
    "streaming, packing": ("sft", {"packing": True, "max_length": 24}, STREAM, 1),
    "streaming, two processes": ("sft", HALVES, STREAM, 2),
}


def cut_everywhere(order: str, work: Path, folder: Path) -> dict[str, str]:
    """Return what becomes of the run when it is cut at each place: `EXACT`, or what differs."""
    method, options, data, ranks = ORDERS[order]
    run = _make_run(work, folder, method, options, data)
    straight = attempts.make(folder / "straight", run, before=record_rows, ranks=ranks)
    if straight.code:
        return dict.fromkeys(CUTS, (straight.folder / "stderr.log").read_text())
    trained = read_rows(straight.folder)
    found = {}
    for place, cut in CUTS.items():
        resumed = attempts.make(folder / place, run, before=record_rows, ranks=ranks, resume=straight.checkpoint(cut))
        if resumed.code:
            found[place] = (resumed.folder / "stderr.log").read_text()
        elif read_rows(resumed.folder) != {rank: rows[cut:] for rank, rows in trained.items()}:
            found[place] = "other rows"
        else:
            found[place] = EXACT if resumed.weights() == straight.weights() else "other weights"
    return found


def _make_run(work: Path, folder: Path, method: str, options: Changes, data: Changes) -> dict[str, Any]:
    """Return a run of three epochs of four steps that saves every step. Its rows differ in length."""
    kind, *_ = METHODS[method]
    answers = 4 if "num_generations" in METHODS[method][1] else 1  # that a step learns from, of each row
    rollouts = 2 if method == "ppo" else 1  # two steps learn from the rows of one rollout, and once more
    run = spec(work, method, options={"max_steps": 3 * STEPS_PER_EPOCH, "logging_steps": 100, **options})
    tiny.make_rows(folder / "rows.jsonl", count=STEPS_PER_EPOCH * 4 // answers // rollouts, kind=kind)
    del run["options"]["eval_steps"]
    return run | {"data": {"train": [{"path": str(folder / "rows.jsonl")}], **data}, "checkpoint": {"every": "1 steps"}}


def record_rows() -> None:
    """Have this process write a digest of the rows of each step into a file of its rank."""
    from trainers.resumable import ResumableTrainer

    take = ResumableTrainer.get_batch_samples
    file = Path(os.environ[CONTROL_VARIABLE], f"rows-{os.environ.get('RANK', '0')}.jsonl")

    def take_and_record(self: Any, *args: Any) -> Any:
        batches, count = take(self, *args)
        if batches:
            with file.open("a") as log:
                log.write(json.dumps(_digest(batches)) + "\n")
        return batches, count

    ResumableTrainer.get_batch_samples = take_and_record  # type: ignore[method-assign, assignment]


def read_rows(folder: Path) -> dict[int, list[str]]:
    """Return the digests that each rank of an attempt has written."""
    return {
        int(path.stem.partition("-")[2]): [json.loads(line) for line in path.read_text().splitlines()]
        for path in folder.glob("rows-*.jsonl")
    }


def _digest(batches: Any) -> str:
    import torch

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, torch.Tensor) else dict(value)

    return hashlib.sha256(json.dumps(batches, default=plain, sort_keys=True).encode()).hexdigest()[:16]

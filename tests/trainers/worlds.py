"""Does a run train the same rows at the same rates when another number of processes resumes it, or another
micro-batch?
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests import tiny
from tests.trainers import attempts
from tests.trainers.sharding import FRAMEWORKS, prepare_ranks
from tests.trainers.specs import METHODS, spec
from trainers.launch.control import CONTROL_VARIABLE

STEPS_PER_EPOCH = 4
STEPS = 2 * STEPS_PER_EPOCH
CUT = 3  #: the step that the run is cut after, in the first epoch
CLOSE, REFUSED = "close", "refused"
#: The greatest difference of a weight after five steps at a rate of 1e-3, which move a weight by up to 5e-3.
TOLERANCE = 1e-5

Changes = Mapping[str, Any]
#: A split of a step of four rows: micro-batch, accumulation, processes.
Split = tuple[int, int, int]
#: How a run is split at first and after the cut, as the run file and the host have it.
CHANGES: dict[str, tuple[Split, Split]] = {
    "2 processes, then 1": ((2, 1, 2), (2, 1, 1)),
    "1 process, then 2": ((2, 2, 1), (2, 2, 2)),
    "half the micro-batch": ((4, 1, 1), (2, 2, 1)),
}
_ALL: Mapping[str, str] = dict.fromkeys(CHANGES, CLOSE)
_NONE: Mapping[str, str] = dict.fromkeys(CHANGES, REFUSED)
_SAME_MICRO_BATCH: Mapping[str, str] = {**_ALL, "half the micro-batch": REFUSED}
_NOT_TWO: Mapping[str, str] = {**_ALL, "1 process, then 2": REFUSED}  #: one row is left, which two cannot share
#: What holds where not every change goes on.
EXPECTED: dict[str, Mapping[str, str]] = {
    **dict.fromkeys(("`kto`", "`grpo`", "`rloo`", "`ppo`", "`gkd`", "`distillation`"), _NONE),
    **dict.fromkeys(("`orpo`", "`cpo`", "`dpo`, `aot`"), _SAME_MICRO_BATCH),
    "15 pairs": {**_NONE, "2 processes, then 1": CLOSE},
    **dict.fromkeys(("13 rows", "13 pairs"), _NOT_TWO),
    **dict.fromkeys(("batch_rebalance", "average_tokens_across_devices: false", "streaming"), _NONE),
}
#: What decides how rows are split: a method, with changes of its options and of its data, and the number of its rows.
WORLDS: dict[str, tuple[str, Changes, Changes, int]] = {
    **{f"`{method}`": (method, {}, {}, 16) for method in METHODS},
    "`cpt`": ("cpt", {"max_length": 16}, {}, 22),
    "`grpo`": ("grpo", {}, {}, 4),
    "`rloo`": ("rloo", {}, {}, 4),
    "`kto`, `apo_zero_unpaired`": ("kto", {"loss_type": "apo_zero_unpaired"}, {}, 16),
    "`dpo`, `aot`": ("dpo", {"loss_type": ["aot"]}, {}, 16),
    "14 rows": ("sft", {}, {}, 14),
    "14 pairs": ("dpo", {}, {}, 14),
    "13 rows": ("sft", {}, {}, 13),
    "13 pairs": ("dpo", {}, {}, 13),
    "15 rows": ("sft", {}, {}, 15),
    "15 pairs": ("dpo", {}, {}, 15),
    "15 rows, dataloader_drop_last": ("sft", {"dataloader_drop_last": True}, {}, 15),
    "sequential": ("sft", {"train_sampling_strategy": "sequential"}, {}, 16),
    "group_by_length": ("sft", {"train_sampling_strategy": "group_by_length"}, {}, 16),
    "use_seedable_sampler: false": ("sft", {"accelerator_config": {"use_seedable_sampler": False}}, {}, 16),
    "packing": ("sft", {"packing": True, "max_length": 32}, {}, 48),
    "batch_rebalance": ("sft", {"train_sampling_strategy": "batch_rebalance"}, {}, 16),
    "average_tokens_across_devices: false": ("sft", {"average_tokens_across_devices": False}, {}, 16),
    "streaming": ("sft", {}, {"streaming": True}, 16),
    **{name: ("sft", {}, {}, 16) for name in ("FSDP1", "FSDP2", "FSDP2, full state")},
}


def change_world(world: str, change: str, work: Path, folder: Path) -> str:
    """Return what becomes of a run that is cut and resumes in another split: `CLOSE`, `REFUSED`, or what differs."""
    method, options, data, count = WORLDS[world]
    before, after = (make_run(work, folder, method, options, data, count, split) for split in CHANGES[change])
    launch = FRAMEWORKS.get(world, {})
    straight = attempts.make(
        folder / "straight",
        before[0] | {"launch": launch},
        before=_prepare_ranks(launch, before[1], folder / "first"),
        ranks=before[1],
    )
    if straight.code:
        return (straight.folder / "stderr.log").read_text()
    resumed = attempts.make(
        folder / "resumed",
        after[0] | {"launch": launch},
        before=_prepare_ranks(launch, after[1], folder / "second"),
        ranks=after[1],
        resume=straight.checkpoint(CUT),
    )
    if resumed.code:
        said = " ".join(resumed.messages("error"))
        refused = not read_steps(resumed.folder) and ("resume with" in said or "must stay" in said)
        return REFUSED if refused else (resumed.folder / "stderr.log").read_text()
    return compare_from(CUT, straight, resumed)


def _prepare_ranks(launch: Changes, processes: int, folder: Path) -> Callable[[], None]:
    """Return what each rank calls before it trains."""
    prepare = prepare_ranks(launch, processes, folder)

    def prepare_and_record() -> None:
        prepare()
        record_rows()

    return prepare_and_record


def compare_from(cut: int, straight: attempts.Attempt, resumed: attempts.Attempt) -> str:
    """Return `CLOSE` where an attempt trained the rows that another trained after a step, at the same rates, and its
    weights are the other's but for rounding; else what differs.
    """
    if read_steps(resumed.folder) != read_steps(straight.folder)[cut:]:
        return "other rows"
    if read_rates(resumed) != {step: rate for step, rate in read_rates(straight).items() if step > cut}:
        return "other rates"
    return CLOSE if _measure_distance(straight, resumed) < TOLERANCE else "other weights"


def make_run(
    work: Path, folder: Path, method: str, options: Changes, data: Changes, count: int, split: Split
) -> tuple[dict[str, Any], int]:
    """Return a run of two epochs that saves and logs every step, and its number of processes."""
    size, accumulation, processes = split
    kind, *_ = METHODS[method]
    shape = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    quiet = {"max_steps": -1, "num_train_epochs": 2, "logging_steps": 1}
    made = spec(work, method, options={**quiet, **shape, **options}, model_init={"attention_dropout": 0.0})
    folder.mkdir(exist_ok=True)
    tiny.make_rows(folder / "rows.jsonl", count=count, kind=kind)
    if data:
        made["options"]["max_steps"] = STEPS
    del made["options"]["eval_steps"]
    rows = {"train": [{"path": str(folder / "rows.jsonl")}], **data}
    return made | {"data": rows, "checkpoint": {"every": "1 steps"}}, processes


def record_rows() -> None:
    """Have this process write, into a file of its rank, a digest of each row that a step trains on."""
    from trainers.resumable import ResumableTrainer

    load, take = ResumableTrainer._get_dataloader, ResumableTrainer.get_batch_samples
    file = Path(os.environ[CONTROL_VARIABLE], f"rows-{os.environ.get('RANK', '0')}.jsonl")
    collated: deque[list[str]] = deque()

    def load_and_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        collate = self.data_collator

        def collate_and_record(rows: Any) -> Any:
            batch = collate(rows)
            collated.append([_digest(row) for row in rows])
            return batch

        if kwargs.get("is_training"):
            self.data_collator = collate_and_record
        try:
            return load(self, *args, **kwargs)
        finally:
            self.data_collator = collate

    def take_and_record(self: Any, *args: Any) -> Any:
        batches, items = take(self, *args)
        if batches:
            with file.open("a") as log:
                log.write(json.dumps([collated.popleft() for _ in batches]) + "\n")
        return batches, items

    ResumableTrainer._get_dataloader = load_and_record  # type: ignore[method-assign]
    ResumableTrainer.get_batch_samples = take_and_record  # type: ignore[method-assign, assignment]


def read_steps(folder: Path) -> list[list[str]]:
    """Return the digests of the rows of each step, over all ranks."""
    ranks = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("rows-*.jsonl"))
    ]
    return [sorted(row for batches in step for batch in batches for row in batch) for step in zip(*ranks, strict=True)]


def _digest(row: Any) -> str:
    return hashlib.sha256(json.dumps(row, default=str, sort_keys=True).encode()).hexdigest()[:16]


def read_rates(attempt: attempts.Attempt) -> dict[int, float]:
    """Return the learning rate of each step."""
    return {step: value for (step, name), value in attempt.curve.items() if name == "learning_rate"}


def _measure_distance(one: attempts.Attempt, other: attempts.Attempt) -> float:
    """Return the greatest difference of a weight between two results. (FSDP on several processes saves tied weights
    twice.)
    """
    from safetensors.numpy import load_file

    files = sorted((one.folder / "output").glob("*.safetensors"))
    pairs = [(load_file(path), load_file(other.folder / "output" / path.name)) for path in files]
    return max(
        float(abs(left[name] - right[name]).max()) for left, right in pairs for name in left.keys() & right.keys()
    )

"""How the rows of an optimizer step are split into micro-batches over processes, and how a run goes on when a host has
another number of processes, or the run file another micro-batch.

The rows of every step are those of the split that the run began with (its origin). accelerate deals batch `i` of the
epoch's order to process `i mod n`, so a step trains the next rows of that order, whatever their split. Only at the end
of an epoch does the origin decide which rows there are: with several processes the last batches are filled up with the
first rows of the order.
"""

import enum
import itertools
import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler

_MOST_PROCESSES = 64  #: the greatest number of processes that a message names
_MOST_NAMED = 8  #: how many numbers of processes a message names


class LossUnit(enum.Enum):
    """What the loss of a step is a mean of. It decides how the rows of the step may be split."""

    TOKEN = "token"  #: all tokens of the step count alike, however it is split
    ROW = "row"  #: rows count alike where micro-batches are equally large
    MICRO_BATCH = "micro-batch"  #: each micro-batch gives one value that depends on the rows beside each other in it
    PROCESS = "process"  #: the loss, or what is trained on, depends on the processes


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What the loss of a method's step is a mean of, and what binds it to that, in words for the user."""

    unit: LossUnit
    why: str = ""


def token_mean(args: Any) -> StepLoss:
    """Return the loss of a method that the library divides by the tokens of the whole step."""
    if args.average_tokens_across_devices:
        return StepLoss(LossUnit.TOKEN)
    return StepLoss(LossUnit.PROCESS, "options.average_tokens_across_devices: false divides by each process's tokens")


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How one optimizer step is split."""

    micro_batch: int  #: rows that a process trains on at once
    accumulation: int  #: micro-batches of each process
    processes: int

    @property
    def rows(self) -> int:
        """The number of rows that a full step trains on."""
        return self.micro_batch * self.accumulation * self.processes

    def __str__(self) -> str:
        return (
            f"micro-batch {self.micro_batch} x accumulation {self.accumulation} x "
            f"{self.processes} process{'es' if self.processes > 1 else ''}"
        )


def fit_shape(origin: BatchShape, micro_batch: int, processes: int, unit: LossUnit) -> BatchShape | None:
    """Return the split of the origin's step over so many processes, or None when there is none.

    Its micro-batch is the greatest that divides `micro_batch`, the run file's, which is known to fit into memory.
    """
    if unit is LossUnit.PROCESS:
        return origin if (micro_batch, processes) == (origin.micro_batch, origin.processes) else None
    if unit is LossUnit.MICRO_BATCH and micro_batch != origin.micro_batch:
        return None
    for size in [micro_batch] if unit is LossUnit.MICRO_BATCH else _list_divisors(micro_batch):
        if origin.rows % (size * processes) == 0:
            return BatchShape(size, origin.rows // (size * processes), processes)
    return None


def count_rows(origin: BatchShape, rows: int, *, drop_last: bool) -> int:
    """Return how many rows an epoch of the origin trains on, of so many: with several processes accelerate fills the
    last batches up with rows of the epoch's beginning, and `drop_last` leaves out what fills no batch of every process.
    """
    size, processes = origin.micro_batch, origin.processes
    if drop_last:
        return rows // size // processes * processes * size
    return rows if processes == 1 else math.ceil(math.ceil(rows / size) / processes) * processes * size


def split_tail(tail: int, origin: BatchShape, shape: BatchShape, unit: LossUnit) -> list[int] | None:
    """Return the sizes of the micro-batches of an epoch's last step, which has only `tail` rows, so that its loss is
    the origin's; None when there are none. Each process has equally many.
    """
    if unit is LossUnit.TOKEN:
        count = math.ceil(math.ceil(tail / shape.micro_batch) / shape.processes) * shape.processes
        size, larger = divmod(tail, count)
        return [size + (at < larger) for at in range(count)] if size else None
    full, rest = divmod(tail, origin.micro_batch)
    sizes = [origin.micro_batch] * full + [rest] * bool(rest)
    alike = shape.processes == 1 or not rest  # processes gather what they measure of each row: equally many at a time
    if shape.micro_batch == origin.micro_batch and alike and len(sizes) % shape.processes == 0:
        return sizes
    if unit is LossUnit.MICRO_BATCH or (full and rest):
        return None  # rows of the smaller micro-batch count more than others in the origin
    for size in range(shape.micro_batch, 0, -1):
        share, uneven = divmod(tail, size * shape.processes)
        if not uneven and share <= shape.accumulation:
            return [size] * (share * shape.processes)
    return None


def list_fitting_processes(
    origin: BatchShape, micro_batch: int, unit: LossUnit, rows: int | None = None, *, drop_last: bool = False
) -> list[int]:
    """Return the numbers of processes that can go on with the origin's steps; for epochs of so many rows, where that
    is known.
    """
    counts = range(1, _MOST_PROCESSES + 1)
    return [count for count in counts if _fits(origin, micro_batch, count, unit, rows, drop_last)]


def _fits(
    origin: BatchShape, micro_batch: int, processes: int, unit: LossUnit, rows: int | None, drop_last: bool
) -> bool:
    """Return True when so many processes can go on with the origin's steps."""
    shape = fit_shape(origin, micro_batch, processes, unit)
    if shape is None or rows is None or shape == origin:
        return shape is not None
    tail = count_rows(origin, rows, drop_last=drop_last) % origin.rows
    return not tail or split_tail(tail, origin, shape, unit) is not None


def format_processes(counts: Sequence[int]) -> str:
    """Return numbers of processes in words: `1, 2 or 4 processes`."""
    named = [str(count) for count in counts[:_MOST_NAMED]]
    text = " or ".join(filter(None, (", ".join(named[:-1]), named[-1])))
    return f"{text} process{'' if counts[0] == 1 and len(counts) == 1 else 'es'}"


@dataclass(frozen=True, slots=True)
class Dealing:
    """How rows are dealt to processes in another split than the one that the run began with."""

    origin: BatchShape
    shape: BatchShape
    unit: LossUnit


class DealtBatches(BatchRebalanceSampler):
    """The micro-batches of one process, whose steps are those of the origin.

    It is one of the library's samplers for which the library neither makes batches nor shares them among processes.
    """

    def __init__(self, order: Sampler[int], dealing: Dealing, rank: int, *, drop_last: bool) -> None:
        self._order: Any = order  # not `sampler`: accelerate would replace it
        self._dealing, self.rank = dealing, rank
        self.drop_last = True  # nothing is to be added to what this yields
        self._rows = count_rows(dealing.origin, len(cast(Sized, order)), drop_last=drop_last)
        tail = self._rows % dealing.origin.rows
        split = split_tail(tail, dealing.origin, dealing.shape, dealing.unit) if tail else []
        # A tail that cannot be split is refused where the run reaches it; elsewhere only its place counts.
        self._tail = [1] * dealing.shape.processes if split is None else split

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be that of `epoch`, counted from 0."""
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        shape = self._dealing.shape
        rows = itertools.cycle(list(self._order))
        sizes = itertools.chain(
            itertools.repeat(shape.micro_batch, self._rows // shape.rows * shape.accumulation * shape.processes),
            self._tail,
        )
        for at, size in enumerate(sizes):
            batch = list(itertools.islice(rows, size))
            if at % shape.processes == self.rank:
                yield batch

    def __len__(self) -> int:
        shape = self._dealing.shape
        return self._rows // shape.rows * shape.accumulation + len(self._tail) // shape.processes


def _list_divisors(number: int) -> list[int]:
    """Return the divisors of a number, the greatest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]

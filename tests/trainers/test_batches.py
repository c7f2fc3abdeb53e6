"""Which rows a step trains on, however it is split: compared with how accelerate deals them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainers.deferred import deferred_imports

with deferred_imports():
    from trainers import batches

TOKEN, ROW, MICRO, PROCESS = "token", "row", "micro-batch", "process"
SPLITS = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))


def _dealt_by_accelerate(origin: Any, rows: int, drop_last: bool) -> list[list[list[int]]]:
    """Return the micro-batches of each step."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    ranks = []
    for rank in range(origin.processes):
        sampler = BatchSampler(SequentialSampler(range(rows)), origin.micro_batch, drop_last)
        shard = BatchSamplerShard(sampler, origin.processes, rank) if origin.processes > 1 else sampler
        ranks.append(list(shard))
    return _by_step(ranks, origin.accumulation)


def _dealt_by_us(dealing: Any, rows: int, drop_last: bool) -> list[list[list[int]]]:
    from torch.utils.data import SequentialSampler

    ranks = []
    for rank in range(dealing.shape.processes):
        sampler = batches.DealtBatches(SequentialSampler(range(rows)), dealing, rank, drop_last=drop_last)
        ranks.append(list(sampler))
        assert len(sampler) == len(ranks[-1])
    assert len({len(rank) for rank in ranks}) == 1, "processes wait for each other"
    return _by_step(ranks, dealing.shape.accumulation)


def _by_step(ranks: list[list[list[int]]], accumulation: int) -> list[list[list[int]]]:
    steps = range(0, len(ranks[0]), accumulation)
    return [[batch for rank in ranks for batch in rank[first : first + accumulation]] for first in steps]


@settings(max_examples=150, deadline=None)
@given(SPLITS, st.integers(1, 60), st.integers(1, 6), st.booleans(), st.sampled_from([TOKEN, ROW, MICRO]))
def test_a_step_has_the_rows_of_the_origin(
    split: tuple[int, int, int], rows: int, processes: int, drop_last: bool, unit: str
) -> None:
    origin, unit_ = batches.BatchShape(*split), batches.LossUnit(unit)
    shape = batches.fit_shape(origin, origin.micro_batch, processes, unit_)
    fits = processes in batches.list_fitting_processes(origin, origin.micro_batch, unit_, rows, drop_last=drop_last)
    if shape is None or not fits or shape == origin:
        return
    assert shape.rows == origin.rows and origin.micro_batch % shape.micro_batch == 0
    before = _dealt_by_accelerate(origin, rows, drop_last)
    after = _dealt_by_us(batches.Dealing(origin, shape, unit_), rows, drop_last)
    assert [_rows(step) for step in after] == [_rows(step) for step in before]
    assert all(len(batch) <= origin.micro_batch for step in after for batch in step)
    if unit != TOKEN:
        slots = [step[at :: len(step) // processes] for step in after for at in range(len(step) // processes)]
        assert all(len({len(batch) for batch in slot}) == 1 for slot in slots), "they gather what they measure"
    if unit == MICRO:
        assert [sorted(step) for step in after] == [sorted(step) for step in before]
    if unit == ROW:
        assert [_weights(step) for step in after] == [_weights(step) for step in before]


def _rows(step: list[list[int]]) -> list[int]:
    return sorted(row for batch in step for row in batch)


def _weights(step: list[list[int]]) -> dict[int, list[float]]:
    """Return how much each row counts in a mean over micro-batches of means over their rows."""
    found: dict[int, list[float]] = {}
    for batch in step:
        for row in batch:
            found.setdefault(row, []).append(round(1 / len(batch) / len(step), 9))
    return {row: sorted(weights) for row, weights in sorted(found.items())}


@pytest.mark.parametrize(
    ("origin", "micro_batch", "unit", "fitting"),
    [
        ((4, 2, 2), 4, TOKEN, "1 or 2 or 4 or 8 or 16 processes"),
        ((4, 2, 2), 4, MICRO, "1 or 2 or 4 processes"),
        ((4, 1, 3), 4, MICRO, "1 or 3 processes"),
        ((4, 1, 3), 4, ROW, "1 or 2 or 3 or 4 or 6 or 12 processes"),
        ((4, 1, 3), 4, PROCESS, "3 processes"),
        ((4, 2, 1), 2, PROCESS, ""),
        ((2, 4, 1), 1, MICRO, ""),
    ],
)
def test_the_numbers_of_processes_that_fit(
    origin: tuple[int, int, int], micro_batch: int, unit: str, fitting: str
) -> None:
    counts = batches.list_fitting_processes(batches.BatchShape(*origin), micro_batch, batches.LossUnit(unit))
    assert counts == [int(each) for each in fitting.replace(" processes", "").split(" or ") if each]
    if counts:
        assert (
            batches.format_processes(counts)
            == " or ".join(filter(None, [", ".join(map(str, counts[:-1])), str(counts[-1])])) + " processes"
        )


def test_the_micro_batch_never_grows() -> None:
    origin, token = batches.BatchShape(4, 1, 8), batches.LossUnit.TOKEN
    assert batches.fit_shape(origin, 4, 1, token) == batches.BatchShape(4, 8, 1)
    assert batches.fit_shape(origin, 2, 1, token) == batches.BatchShape(2, 16, 1)
    assert batches.fit_shape(origin, 6, 2, token) == batches.BatchShape(2, 8, 2)
    assert batches.fit_shape(origin, 4, 3, token) is None
    assert str(origin) == "micro-batch 4 x accumulation 1 x 8 processes"


@pytest.mark.parametrize(
    ("tail", "shape", "unit", "sizes"),
    [
        (2, (2, 1, 2), ROW, [1, 1]),
        (2, (2, 1, 2), MICRO, None),
        (3, (2, 1, 2), ROW, None),
        (3, (2, 1, 2), TOKEN, [2, 1]),
        (3, (2, 2, 1), MICRO, [2, 1]),
        (3, (1, 2, 2), ROW, None),
        (3, (1, 2, 2), TOKEN, None),
        (1, (2, 1, 2), TOKEN, None),
        (1, (1, 4, 1), ROW, [1]),
    ],
)
def test_the_last_step_of_an_epoch_is_split_where_its_loss_stays(
    tail: int, shape: tuple[int, int, int], unit: str, sizes: list[int] | None
) -> None:
    """The origin is one process with micro-batches of two, so three rows count 1/4, 1/4 and 1/2."""
    origin = batches.BatchShape(2, 2, 1)
    assert batches.split_tail(tail, origin, batches.BatchShape(*shape), batches.LossUnit(unit)) == sizes

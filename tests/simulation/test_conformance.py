"""The simulated database does what a real one does: the same commands have the same answers and leave the same rows."""

import importlib
import pkgutil
from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest

import coordinator.store
from coordinator.database.postgres import Cluster
from coordinator.store.statement import Statement
from tests.simulation.store.repertoire import REPERTOIRE
from tests.simulation.traces import Trace
from tests.simulation.twins import Twins, twins

STEPS = 150
SEEDS = 40  #: of each kind
_PAUSES = [0.0, 0.001, 0.1, 0.3, 1, 2] * 4 + [5.0, 11, 31, -1, -90, 400]  #: seconds


@pytest.fixture
async def both(postgres_server: Cluster) -> AsyncIterator[Twins]:
    """A real and a simulated database, both empty."""
    async with twins(postgres_server) as made:
        yield made


def statements() -> set[Statement[..., Any]]:
    """All that the store has."""
    modules = [importlib.import_module(f"coordinator.store.{each.name}") for each in _modules()]
    return {value for module in modules for value in vars(module).values() if isinstance(value, Statement)}


def _modules() -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.iter_modules(coordinator.store.__path__))


def test_every_statement_can_be_carried_out() -> None:
    assert set(REPERTOIRE) == statements()


@pytest.mark.rotating(2)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_the_same_commands_have_the_same_answers_and_leave_the_same_rows(both: Twins, seed: int) -> None:
    """One after the other."""
    await run(both, Random(seed), STEPS, alone=1.0)


@pytest.mark.rotating(2)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_commands_that_meet_wait_for_each_other_alike(both: Twins, seed: int) -> None:
    """One comes when the other has written all and not committed."""
    await run(both, Random(f"met-{seed}"), STEPS, alone=0.3)


async def test_traces_come_by_every_statement(both: Twins) -> None:
    dice = Random("all")
    for _ in range(20):
        await run(both, dice, 100, alone=1.0)
        if both.real.reached >= statements():
            return
    assert both.real.reached >= statements()


async def run(both: Twins, dice: Random, steps: int, *, alone: float) -> None:
    """A random trace on both, compared at each step."""
    trace = Trace(dice, both.storage)
    for _ in range(steps):
        name, act = trace.act()
        if dice.random() < alone:
            print(name, end=" ")
            print(await both.agree(act))
        else:
            other, second = trace.act()
            which, commit = dice.choice([0, 0, 1]), dice.random() < 0.8
            print(name, other, which, commit, end=" ")
            print(await both.overlap(act, second, which=which, commit=commit))
        await both.pass_time(dice.choice(_PAUSES))
        await meddle(both, dice)


async def meddle(both: Twins, dice: Random) -> None:
    """What no command does: a failover, a restored copy, and time that flies for one row."""
    if dice.random() < 0.02:
        (row,) = both.storage.rows("deployment")
        if row["timeline"] is not None:
            changed: dict[str, Any] = dice.choice([{"timeline": row["timeline"] + 1}, {"database_oid": 17}])
            await both.set("deployment", True, **changed)
    if dice.random() < 0.1:
        for place in both.storage.rows("places"):
            if dice.random() < 0.5:
                key = (place["lease_id"], place["node"])
                await both.set("places", key, expire_time=both.now - timedelta(seconds=1))
    if dice.random() < 0.1:
        for waiting in both.storage.rows("runs"):
            await both.set("runs", waiting["id"], eligible_time=None)

"""How tests are shared out to xdist's workers.

Most tests wait more than they compute: for a process to start, for a lease to lapse. Others compute all the time. Only
as many workers as there are cores take those that compute; the other workers take tests that wait.

A shell that puts `make test` in the background has it ignore SIGINT, and nohup SIGHUP. Tests send such signals to
processes that they start, which would inherit that, so each worker takes them as from a terminal.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import OrderedDict

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

CORES = len(os.sched_getaffinity(0))
#: Folders whose tests wait more than they compute.
WAITING = tuple(
    f"tests/{name}/" for name in ("agent", "coordinator", "deploy", "docs", "end_to_end", "faults", "relayctl")
)
#: Folders in which the tests of a file share a deployment.
DEPLOYED = ("tests/end_to_end/", "tests/faults/", "tests/relayctl/commands/")
#: Files whose tests share what `relayctl up` brought up.
UP = ["tests/docs/test_walkthroughs.py"]
#: Files whose tests load the training libraries into the worker itself, for attempts to fork from.
LOADING = [
    f"tests/trainers/test_{name}.py"
    for name in ("another_trainer", "epochs", "gpu", "length", "resumable", "runtime", "schemas")
]

#: Libraries that take seconds to import. Every worker imports every test, so no test may import them before it runs.
HEAVY = frozenset({"accelerate", "datasets", "lm_eval", "peft", "torch", "transformers", "trl"})
LOADED = pytest.StashKey[frozenset[str]]()  #: those that were imported while tests were collected


def pytest_configure(config: pytest.Config) -> None:
    """Undo that a shell had the tests ignore the signals of a terminal."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return Units(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[LOADED] = HEAVY & sys.modules.keys()


class Units(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """Hands tests to workers one by one, except those that share something expensive: one worker gets all of them."""

    workqueue: OrderedDict[str, dict[str, bool]]

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith(DEPLOYED) or file in UP:
            return str(file)
        if file in LOADING:
            return "the training libraries"
        return nodeid

    def _reschedule(self, node: WorkerController) -> None:
        """Give a worker more to do, or end it when nothing is left that it may take."""
        if self.workqueue and not node.shutting_down and self._next_unit(node) is None:
            node.shutdown()
        else:
            super()._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if (unit := self._next_unit(node)) is not None:
            self.workqueue.move_to_end(unit, last=False)
            super()._assign_work_unit(node)

    def _next_unit(self, node: WorkerController) -> str | None:
        """Return the first unit that a worker may take. The workers that may compute prefer to."""
        alive = [each for each in self.nodes if not each.shutting_down]
        waiting = (unit for unit in self.workqueue if unit.startswith(WAITING))
        if node not in alive[:CORES]:
            return next(waiting, None)
        computing = (unit for unit in self.workqueue if not unit.startswith(WAITING))
        return next(computing, None) or next(waiting, None)

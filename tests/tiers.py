"""Two tiers of tests: what every commit runs, and everything.

`make test` leaves out tests marked `thorough`, and runs a few of those marked `rotating`, chosen by a draw. The draw is
a hash of the sources, so each commit runs others of them, and everybody who has that commit runs the same ones.
`make test-all` (`pytest --thorough`) runs every test.
"""

from __future__ import annotations

import hashlib
import os
import resource
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = "cpu seconds"  #: the property of a test's report that says what the test cost


class Tier:
    """The tier that this session of pytest runs, and the draw that rotates tests within it."""

    def __init__(self, config: pytest.Config) -> None:
        self.thorough: bool = config.getoption("--thorough")
        self.draw: str = config.getoption("--draw")

    def pick(self, few: int, all_of_them: int) -> int:
        """Return how many times a test repeats what it does."""
        return all_of_them if self.thorough else few

    def random(self, seed: object) -> Random:
        """Return the random numbers of a test: those of `seed` in the thorough tier, those of the draw on a commit."""
        return Random(f"{seed}" if self.thorough else f"{self.draw} {seed}")

    def chosen(self, case: str) -> bytes:
        """Return the rank of a rotating case. The lowest ranks of a group run."""
        return hashlib.sha256(f"{self.draw} {case}".encode()).digest()


def hash_of_sources() -> str:
    """Return a short hash of all Python files of the repository, which need not be a git checkout."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(name for name in files if name.endswith(".py")):
            path = Path(folder, name)
            digest.update(f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--thorough", action="store_true", help="run every test, not only those of a commit")
    group.addoption("--draw", default="", help="choose rotating tests by this text (default: a hash of the sources)")
    group.addoption("--seeds", type=int, default=20_000, help="simulate this many seeds in the thorough tier")


def pytest_configure(config: pytest.Config) -> None:
    config.option.draw = config.option.draw or hash_of_sources()  # xdist hands options on to its workers


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("--thorough"):
        return "tier: everything"
    draw = config.getoption("--draw")
    return f"tier: commit; rotating tests are drawn by {draw} (again: make test ARGS=--draw={draw})"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier = Tier(config)
    if tier.thorough or all("::" in argument for argument in config.args):  # a test that is named runs
        return
    chosen = set(_chosen_cases(tier, items))
    kept = [item for item in items if not item.get_closest_marker("thorough") and _case(item) in {None, *chosen}]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _chosen_cases(tier: Tier, items: list[pytest.Item]) -> Iterator[tuple[str, str]]:
    """Yield the group and name of each rotating case that runs."""
    groups: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for item in items:
        if (case := _case(item)) and (mark := item.get_closest_marker("rotating")):
            groups[case[0]][case[1]] = mark.args[0]
    for group, cases in groups.items():
        for name in sorted(cases, key=tier.chosen)[: next(iter(cases.values()))]:
            yield group, name


def _case(item: pytest.Item) -> tuple[str, str] | None:
    """Return the group that a rotating test belongs to, and the name that it has there; None for any other test.

    A mark on a function groups its parameters. A mark on a module groups the parameters of all its functions, so that
    two tests of one parameter run together. A mark with `of` groups all tests whose marks have the same name.
    """
    for node, mark in item.iter_markers_with_node("rotating"):
        if of := mark.kwargs.get("of"):
            return of, item.nodeid
        function, _, parameters = item.nodeid.partition("[")
        return node.nodeid.partition("[")[0], parameters or function
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEGAN] = _cpu_seconds()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "teardown" and _BEGAN in item.stash:
        item.user_properties.append((CPU, _cpu_seconds() - item.stash[_BEGAN]))


_BEGAN = pytest.StashKey[float]()


def _cpu_seconds() -> float:
    """Return what this process has computed, and the processes that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was run: the tests of each folder, and what they cost."""
    reports = [each for some in terminalreporter.stats.values() for each in some if isinstance(each, pytest.TestReport)]
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for report in reports:
        if report.when == "teardown":
            groups[_group(report.nodeid)] += [
                float(str(value)) for name, value in report.user_properties if name == CPU
            ]
    if len(groups) < 2:
        return
    everything = config.getoption("--thorough")
    terminalreporter.section(f"what was run: {'everything' if everything else 'the tier of a commit'}")
    for name, seconds in sorted(groups.items(), key=lambda group: -sum(group[1])):
        terminalreporter.line(f"{name:<32} {len(seconds):>6} tests {sum(seconds):>8.1f} CPU s")
    total = sum(map(sum, groups.values()))
    terminalreporter.line(f"{'all':<32} {sum(map(len, groups.values())):>6} tests {total:>8.1f} CPU s")
    seeds = f"0 to {config.getoption('--seeds') - 1}" if everything else "the corpus, and some that the draw chose"
    terminalreporter.line(f"seeds of the simulator: {seeds}")


def _group(nodeid: str) -> str:
    """Return the part of the tree that a test is in: a folder of `tests`, or a file or folder of a large one."""
    parts = nodeid.partition("::")[0].split("/")
    return "/".join(parts[: 3 if parts[1] in ("simulation", "storage", "trainers") else 2])


@pytest.fixture(scope="session")
def tier(request: pytest.FixtureRequest) -> Tier:
    """The tier that is run, for tests that repeat something many times."""
    return Tier(request.config)

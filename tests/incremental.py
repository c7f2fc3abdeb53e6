"""`make test`: runs the tests whose inputs have changed since they last passed here, and says which have not.

A group is a folder of tests (and the modules beside them). Its inputs are its own files, the folders below, what is
installed, and how tests are run. Groups are remembered, in `.build/`, when all that was run has passed, so a fresh
checkout runs everything; so does `make test ALL=1`. With arguments of pytest's own (`ARGS='-k fencing'`) it runs what
they say, and remembers nothing.

That a narrow group reaches nothing beyond its inputs follows from the import contracts in `pyproject.toml`, and
`test_architecture.py` holds the groups to it.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PASSED = ROOT / ".build" / "tests-passed.json"  #: digest of its inputs by group
BESIDE = "*"  #: the group of the modules beside the folders

EVERYTHING = (
    *("agent", "benchmarks", "coordinator", "deploy", "docs", "examples", "migrations", "proto", "relayctl"),
    *(".ci", "trainers"),
)
#: Folders that the tests of a group reach; every other group reaches everything.
INPUTS = {
    "agent": ("agent", "proto"),
    "coordinator": ("coordinator", "docs", "migrations", "proto"),
    "relay": ("docs", "examples", "proto"),
    "simulation": ("agent", "coordinator", "docs", "migrations", "proto"),
    "trainers": ("examples", "proto", "trainers"),
}
#: Folders of other tests that the tests of a group stand on.
STANDS_ON = {
    "agent": ("hub",),
    "coordinator": ("history",),
    "end_to_end": ("history", "hub", "relay"),
    "faults": ("agent", "coordinator", "end_to_end", "history", "hub", "relay"),
    "relay": ("hub",),
    "relayctl": ("history", "hub"),
    "simulation": ("history",),
    "trainers": ("hub",),
}
_FOR_ALL = (".dockerignore", "Makefile", "buf.yaml", "constraints.txt", "pyproject.toml")


def groups() -> list[str]:
    """All there are."""
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("*/test_*.py")}
    return [BESIDE, *sorted(folders)]


def paths(group: str) -> list[str]:
    """What pytest is told, to run a group."""
    if group == BESIDE:
        return sorted(f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py"))
    return [f"tests/{group}"]


def digest(group: str) -> str:
    """Of all that decides whether the group passes."""
    found = hashlib.sha256(sys.version.encode())
    for line in sorted(f"{each.name}=={each.version}" for each in metadata.distributions()):
        found.update(line.encode())
    for path in _files(group):
        found.update(f"\0{path.relative_to(ROOT)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _files(group: str) -> Iterator[Path]:
    yield from (path for name in _FOR_ALL if (path := ROOT / name).exists())
    yield from sorted((ROOT / "tests").glob("*.py"))
    folders = [ROOT / name for name in INPUTS.get(group, EVERYTHING)]
    folders += [ROOT / "tests" / name for name in ("" if group == BESIDE else group, *STANDS_ON.get(group, ()))]
    for folder in folders:
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def main(arguments: list[str]) -> int:
    """`[--all] -n WORKERS [arguments of pytest's own]`; the exit code."""
    everything = "--all" in arguments
    arguments = [argument for argument in arguments if argument != "--all"]
    if len(arguments) > 2:
        return int(pytest.main(arguments))
    passed = json.loads(PASSED.read_text()) if PASSED.exists() else {}
    digests = {group: digest(group) for group in groups()}
    stale = [group for group in digests if everything or passed.get(group) != digests[group]]
    code = int(pytest.main([*arguments, *(path for group in stale for path in paths(group))])) if stale else 0
    if code == 0:
        PASSED.parent.mkdir(exist_ok=True)
        half = PASSED.with_suffix(".half")
        half.write_text(json.dumps(digests, indent=1))
        half.replace(PASSED)
    if left_out := [group if group != BESIDE else "test_*.py" for group in digests if group not in stale]:
        print(f"unchanged since they passed here: {', '.join(left_out)} (`make test ALL=1` runs them too)")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

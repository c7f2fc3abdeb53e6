"""The shape of the code: who may import whom, what stays pure, and what tests may not do."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from sysconfig import get_path

import pytest

from tests import workers

ROOT = Path(__file__).parents[1]
PACKAGES = ("relay", "runfile", "storage", "coordinator", "agent", "trainers", "relayctl")
SOURCES = [ROOT / "proto" / "relay", *(ROOT / name for name in PACKAGES[1:])]

#: Modules that decide and nothing else: no I/O, no clock, no SQL, no protobuf.
PURE = (
    *("coordinator/lifecycle.py", "coordinator/retention.py", "coordinator/scheduling.py"),
    *("coordinator/event_lines.py", "coordinator/outage.py", "coordinator/values.py"),
    *("agent/leases.py", "proto/relay/timing.py", "storage/address.py"),
)
IMPURE_LIBRARY = {"asyncio", "os", "random", "socket", "subprocess", "threading", "time"}

MODULE_LINES, CLASS_LINES, FUNCTION_LINES = 400, 250, 60
FLOOR_LINES = 60  #: of a module that only one other uses


def modules(*roots: Path) -> Iterator[Path]:
    """Hand-written Python files below the folders."""
    return (path for root in roots for path in sorted(root.rglob("*.py")) if "_pb2" not in path.name)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(path: Path) -> Iterator[str]:
    """The full names of the modules a file imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def top(name: str) -> str:
    return name.split(".")[0]


def test_imports_keep_to_the_contracts() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_only_the_standard_library_and_each_other(name: str) -> None:
    pure = {path.removeprefix("proto/").removesuffix(".py").replace("/", ".") for path in PURE}
    foreign = {module for module in imported(ROOT / name) if top(module) not in sys.stdlib_module_names} - pure
    assert not foreign
    assert not IMPURE_LIBRARY & {top(module) for module in imported(ROOT / name)}


def test_the_shim_needs_the_standard_library_only() -> None:
    """It starts with `python -I -S`, in milliseconds, and must outlive any upgrade of what is installed."""
    inside = {f"agent.shim.{path.stem}" for path in modules(ROOT / "agent" / "shim")}
    found = {name for path in modules(ROOT / "agent" / "shim") for name in imported(path)}
    assert {name for name in found if top(name) not in sys.stdlib_module_names} <= inside
    assert not list(imported(ROOT / "agent" / "__init__.py"))


def test_migrations_do_not_import_the_coordinator() -> None:
    """A released migration never changes, so it may not lean on what does."""
    for path in modules(ROOT / "migrations" / "versions"):
        assert not {"coordinator", "relay"} & {top(module) for module in imported(path)}, path


def test_commands_and_services_run_no_sql_of_their_own() -> None:
    """What they ask of the database is statements of the store, which another kind of connection can carry out."""
    runs_sql = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_records_to_table"}
    for path in modules(ROOT / "coordinator" / "commands", ROOT / "coordinator" / "background"):
        called = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        assert not called & runs_sql, path


def test_proto_is_a_source_root_and_no_package() -> None:
    """`import proto` is proto-plus's; a package of ours would shadow it wherever the repository comes first."""
    assert not (ROOT / "proto" / "__init__.py").exists()


def test_no_other_distribution_ships_our_package_names() -> None:
    """The editable install leaves nothing in site-packages, so whatever is there under our names is somebody else's."""
    shadows = {
        name
        for folder in map(Path, (get_path("purelib"), get_path("platlib")))
        for name in (*PACKAGES, "tests", "migrations")
        if (folder / name).exists() or (folder / f"{name}.py").exists()
    }
    assert not shadows


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    banned = {"utils", "util", "common", "helpers", "misc"}
    assert not [path for path in modules(*SOURCES, ROOT / "tests") if path.stem in banned or path.parent.name in banned]


def test_no_test_sleeps() -> None:
    """Tests await facts. Time that must pass is a deadline on a fact, or a value handed in, or virtual."""
    real = [path for path in modules(ROOT / "tests") if not path.is_relative_to(ROOT / "tests" / "simulation")]
    assert not [f"{path.relative_to(ROOT)}:{line}" for path in real for line in sleeps(tree(path))]


def sleeps(module: ast.Module) -> Iterator[int]:
    """Lines that let time pass; `sleep(0)` only lets others run."""
    for node in ast.walk(module):
        match node:
            case ast.Call(args=[ast.Constant(value=0)]):
                continue
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time" | "asyncio"), attr="sleep"), lineno=line):
                yield line
            case ast.ImportFrom(module="time" | "asyncio", names=names, lineno=line):
                yield from (line for alias in names if alias.name == "sleep")


def test_collecting_tests_imports_no_training_library(request: pytest.FixtureRequest) -> None:
    """Of the tests that this run has collected. `tests/trainers/deferred.py` is how to import them instead."""
    assert request.config.stash[workers.LOADED] == frozenset()


def test_no_except_star_awaits() -> None:
    """Before Python 3.11.4 a cancellation that leaves one is wrapped in a group, and ends what should continue."""
    tried = [node for path in modules(*SOURCES) for node in ast.walk(tree(path)) if isinstance(node, ast.TryStar)]
    inside = [node for each in tried for handler in each.handlers for node in ast.walk(handler)]
    assert tried and not [node for node in inside if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith)]


def test_code_stays_small() -> None:
    """A reader holds one module in mind. What outgrows these is split by its nouns."""
    assert not [finding for path in modules(*SOURCES) for finding in overgrown(path)]


#: Rooms in which each module is one of a kind, however small.
ONE_OF_A_KIND = ("trainers.methods.", "relayctl.commands.", "coordinator.rpc.", "agent.stores.")
#: Small modules with one user that are right as they are, and why.
SMALL_ON_PURPOSE = {
    "agent.host_metrics": "reads in a thread, on the event loop's side, what `agent.capability` measures",
    "agent.shim_client.orphans": "looks at processes; the rest of the room talks to shims",
    "coordinator.outage": "a pure rule, apart from the background task that applies it",
    "relayctl.local.recovery": "a pure reckoning, which benchmarks use too",
}


def test_no_module_is_a_crumb() -> None:
    """A small module that only one other uses is part of that one: a reader opens one file instead of two."""
    users = find_importers()
    small = {
        name
        for name, path in named_modules().items()
        if count_lines(path.read_text().splitlines()) < FLOOR_LINES and len(users[name]) <= 1 and not is_program(path)
    }
    assert {name for name in small if not name.startswith(ONE_OF_A_KIND)} == set(SMALL_ON_PURPOSE)


def named_modules() -> dict[str, Path]:
    """Return our modules by import name, without `__init__` and `__main__`."""
    paths = [path for path in modules(*SOURCES) if path.stem not in ("__init__", "__main__")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("proto."): path for path in paths}


def find_importers() -> dict[str, set[str]]:
    """Return, for each module, the modules that import it."""
    users: dict[str, set[str]] = {name: set() for name in named_modules()}
    for path in modules(*SOURCES):
        user = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("proto.")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                    users.get(name, set()).add(user)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    users.get(alias.name, set()).add(user)
    return users


def is_program(path: Path) -> bool:
    """Say whether the module is a program (`python -m`), which must be a file of its own."""
    return "__main__" in {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)}


def overgrown(path: Path) -> Iterator[str]:
    """What is over its limit, counted in lines that are not blank."""
    name, lines = path.relative_to(ROOT), path.read_text().splitlines()
    if (size := count_lines(lines)) > MODULE_LINES:
        yield f"{name}: {size} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            if (size := count_lines(lines[node.lineno - 1 : node.end_lineno])) > limit:
                yield f"{name}:{node.lineno} {node.name}: {size} lines"


def count_lines(lines: Sequence[str]) -> int:
    return sum(1 for line in lines if line.strip())

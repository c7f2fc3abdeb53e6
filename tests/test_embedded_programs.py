"""The names in text: programs that tests, benchmarks and pages hold, and the errors that docstrings say are raised.

A rename that goes by imports does not reach them, and such a program then fails for a reason which no test is about.
Modules are read here, never imported, so that the scan needs neither torch nor seconds.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = "relay|runfile|storage|coordinator|agent|trainers|relayctl|tests|benchmarks"
_MODULE = rf"(?:{_PACKAGES})(?:\.\w+)*"
_FROM = re.compile(rf"^[ \t>.]*from ({_MODULE}) import (?:\(([^)]*)\)|([^\n;#]*))", re.MULTILINE)
_IMPORT = re.compile(rf"(?:^|;)[ \t>.]*import ({_MODULE})(?![\w.])", re.MULTILINE)
_RUN = re.compile(rf"(?:^|\s)-m ({_MODULE})(?![\w.])")
_TARGET = re.compile(rf"(?:{_PACKAGES})(?:\.\w+)+")
_FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RAISES = re.compile(r"\braises? ([^.;:]*)", re.IGNORECASE)
#: Functions whose first argument may be a target such as "agent.shim_client.shims.ANSWER".
_PATCHES = {"setattr", "delattr", "patch"}


@cache
def module_file(module: str) -> Path | None:
    """Return the file of one of our modules, the folder if it has no `__init__.py`, or None if there is neither."""
    base = ROOT / ("proto" if module.split(".")[0] == "relay" else "") / module.replace(".", "/")
    files = (base / "__init__.py", base.with_name(f"{base.name}.py"), base.with_name(f"{base.name}.pyi"), base)
    return next((path for path in files if path.exists()), None)


@cache
def top_level_names(module: str) -> dict[str, ast.stmt]:
    """Return the names that a module binds at its top level, those inside `if` and `try` included."""
    path = module_file(module)
    names: dict[str, ast.stmt] = {}
    if path is None or path.is_dir():
        return names
    pending: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while pending:
        statement = pending.pop()
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names[statement.name] = statement
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name.split(".")[0]: statement for alias in statement.names}
            case ast.Assign() | ast.AnnAssign():
                bound = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
                names |= {node.id: statement for node in bound if isinstance(node.ctx, ast.Store)}
            case _:
                pending += [
                    node for node in ast.walk(statement) if isinstance(node, ast.stmt) and node is not statement
                ]
    return names


def has_name(module: str, name: str) -> bool:
    """Return whether a module binds a name or holds a module of that name; re-exports are followed."""
    if module_file(f"{module}.{name}"):
        return True
    path = module_file(module)
    if path and path.stem.endswith("_pb2"):
        return True  # protobuf makes these names when the module is imported
    statement = top_level_names(module).get(name)
    if isinstance(statement, ast.ImportFrom) and re.fullmatch(_MODULE, statement.module or "") and not statement.level:
        source = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
        return has_name(statement.module or "", source)
    return statement is not None


def wrong_imports(program: str) -> Iterator[str]:
    """Each module or name of ours that the text of a program imports or runs, and that does not exist."""
    for found in _FROM.finditer(program):
        module, names = found[1], re.findall(r"(\w+)(?:\s+as\s+\w+)?\s*(?:,|$)", (found[2] or found[3]).strip())
        if not module_file(module):
            yield f"no module {module}"
        else:
            yield from (f"no {name} in {module}" for name in names if not has_name(module, name))
    for found in (*_IMPORT.finditer(program), *_RUN.finditer(program)):
        if not module_file(found[1]):
            yield f"no module {found[1]}"


def wrong_target(target: str) -> Iterator[str]:
    """The part of "module.attribute" that does not exist, if there is one."""
    parts = target.split(".")
    depth = max((at for at in range(1, len(parts) + 1) if module_file(".".join(parts[:at]))), default=0)
    module = ".".join(parts[:depth])
    if not depth or (depth < len(parts) and not has_name(module, parts[depth])):
        yield f"no {target}"


def wrong_names(code: str) -> Iterator[str]:
    """Each wrong name inside the strings of a Python file, with its line."""
    for node in ast.walk(ast.parse(code)):
        wrong: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            wrong += wrong_imports(node.value)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called in _PATCHES and isinstance(first, ast.Constant) and _TARGET.fullmatch(str(first.value)):
                wrong += wrong_target(str(first.value))
        if isinstance(node, ast.List | ast.Tuple | ast.Call):
            wrong += _wrong_commands(node.args if isinstance(node, ast.Call) else node.elts)
        yield from (f"{getattr(node, 'lineno', 0)}: {text}" for text in wrong)


def _wrong_commands(arguments: list[ast.expr]) -> Iterator[str]:
    """The modules that do not exist in argument lists such as `[sys.executable, "-m", "agent.shim"]`."""
    words = [argument.value if isinstance(argument, ast.Constant) else None for argument in arguments]
    for option, module in pairwise(words):
        if option == "-m" and isinstance(module, str) and re.fullmatch(_MODULE, module) and not module_file(module):
            yield f"no module {module}"


@pytest.mark.parametrize("room", ["tests", "benchmarks"])
def test_names_inside_strings_exist(room: str) -> None:
    files = [path for path in sorted((ROOT / room).rglob("*.py")) if path != Path(__file__).resolve()]
    assert files
    assert not [f"{path.relative_to(ROOT)}:{wrong}" for path in files for wrong in wrong_names(path.read_text())]


def test_names_on_pages_exist() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    wrong = [
        f"{page.relative_to(ROOT)}: {text}"
        for page in pages
        for program in _FENCED.findall(page.read_text())
        for text in wrong_imports(program)
    ]
    assert not wrong


def raised_names(module: ast.Module) -> Iterator[str]:
    """Each name of an error that a docstring says is raised."""
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for sentence in _RAISES.finditer(" ".join((ast.get_docstring(node) or "").split())):
                yield from re.findall(r"\b[A-Z][a-z]\w+", sentence[1])


def test_errors_that_docstrings_name_exist() -> None:
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    paths = [path for folder in folders for path in folder.rglob("*.py") if "_pb2" not in path.name]
    modules = {path: ast.parse(path.read_text()) for path in paths}
    known = {*dir(builtins)}
    for module in modules.values():
        for node in ast.walk(module):
            match node:
                case ast.ClassDef():
                    known.add(node.name)
                case ast.Attribute():
                    known.add(node.attr)
                case ast.ImportFrom():
                    known |= {alias.name for alias in node.names}
    assert not {path: wrong for path, module in modules.items() if (wrong := {*raised_names(module)} - known)}


def test_an_error_that_does_not_exist_is_found() -> None:
    program = ast.parse(
        'def f():\n    """Do it.\n\n    Raises NoSuchError when it fails, OSError when the disk does."""'
    )
    assert list(raised_names(program)) == ["NoSuchError"]


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("'from storage.address import no_such_name'", "no no_such_name in storage.address"),
        ("'''\n  from storage.address import (\n  no_such_name,\n)'''", "no no_such_name in storage.address"),
        ("f'from storage.nowhere import {name}'", "no module storage.nowhere"),
        ("'import os; import agent.nowhere'", "no module agent.nowhere"),
        ("'python -m agent.nowhere --help'", "no module agent.nowhere"),
        ("run(sys.executable, '-m', 'agent.nowhere')", "no module agent.nowhere"),
        ("[sys.executable, '-m', 'agent.nowhere']", "no module agent.nowhere"),
        ("monkeypatch.setattr('agent.shim_client.shims.NO_SUCH', 1)", "no agent.shim_client.shims.NO_SUCH"),
        ("monkeypatch.setattr('agent.nowhere.shims', 1)", "no agent.nowhere.shims"),
    ],
)
def test_a_wrong_name_is_found(code: str, wrong: str) -> None:
    assert list(wrong_names(code)) == [f"1: {wrong}"]


def test_right_names_are_not_reported() -> None:
    program = "from agent.shim_client.shims import ANSWER as a, START\nfrom agent import shim_client\nimport agent.shim"
    assert not list(wrong_names(repr(program)))
    assert not list(wrong_names("monkeypatch.setattr('coordinator.artifacts.folder.os.rename', 1)"))

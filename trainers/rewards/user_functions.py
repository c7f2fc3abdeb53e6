"""A user's own function, imported by the name that a run file gives."""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError


def import_function(call: str) -> Callable[..., Any]:
    """Return the function that `call` names: `file.py:function`, relative to this process's folder, or
    `package.module:function` (also with a dot instead of the colon). Raises ConfigError, which names what is missing.
    """
    where, _, name = call.rpartition(":") if ":" in call else call.rpartition(".")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{call}: there is no module {error.name}") from error
    except OSError as error:
        raise ConfigError(f"{call}: {where} cannot be read: {error.strerror}; name it in files") from error
    except Exception as error:  # the user's code runs here for the first time
        raise ConfigError(f"{call}: {where} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{call}: {where} has no function {name}")
    return function  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    """Import a Python file as a module."""
    path.open().close()
    folder = str(path.absolute().parent)
    if folder not in sys.path:  # it may import what lies beside it
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import does; dataclasses look there
    spec.loader.exec_module(module)
    return module


def digest_code(call: str) -> str:
    """Return a SHA-256 over the code of the function that `call` names: its file, and the files beside it (in its
    package) that it imports, directly or not. What is installed elsewhere has a version instead.
    """
    where, _, _ = call.rpartition(":") if ":" in call else call.rpartition(".")
    if where.endswith(".py"):
        folder, start = Path(where).absolute().parent, Path(where).absolute()
    else:
        origin = getattr(importlib.util.find_spec(where), "origin", None)
        if origin is None:
            return f"module:{where}"
        start = Path(origin).absolute()
        folder = start.parents[where.count(".") + (start.name == "__init__.py")]
    finder = ModuleFinder(path=[] if "site-packages" in folder.parts else [str(folder)])
    finder.run_script(str(start))
    modules: list[Any] = list(finder.modules.values())
    files = {Path(module.__file__) for module in modules if module.__file__}
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.name if path == start else path.relative_to(folder)
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def call_function(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Call the function with those of the arguments that it takes, and return its result (awaited where it
    is async).
    """
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    taken = {name: value for name, value in given.items() if takes_all or name in {each.name for each in parameters}}
    answer = function(**taken)
    return asyncio.run(answer) if inspect.iscoroutine(answer) else answer

"""Imports in tests that load nothing before a test uses them: every worker imports every test, and few train."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

OURS = "trainers"  #: The packages below it are imported at once, since they hold little.


@contextmanager
def deferred_imports() -> Iterator[None]:
    """Import modules when they are first used. In the block, write `import torch` or `from trainers.data import files`,
    and use what is in them by their names: `files.read_rows`. Patch them by their full names:
    `monkeypatch.setattr("trainers.data.files.read_rows", …)`. Python 3.15 has `lazy import` for it.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.found:  # whoever imports them elsewhere gets the modules themselves
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent:
                delattr(sys.modules[parent], child)


class _Module(ModuleType):
    """A name for a module, which is imported when an attribute is read or set."""

    _mock_name = None  # pytest reads it of every name in a module that it collects

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or sys.modules.get(self.__name__) is self:
            raise AttributeError(f"{self.__name__} is deferred: {name} must be used in a test, as an attribute of it")
        return getattr(importlib.import_module(self.__name__), name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("__") or sys.modules.get(self.__name__) is self:
            super().__setattr__(name, value)
        else:
            setattr(importlib.import_module(self.__name__), name, value)


class _Finder(MetaPathFinder, Loader):
    """Finds a `_Module` for each module that is not imported yet."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path)
        if spec is None or (spec.submodule_search_locations and name.partition(".")[0] == OURS):
            return None
        self.found.append(name)
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Load nothing."""

"""How the functions that carry out statements are registered: one repertoire for each module of the store."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from coordinator.store.statement import Statement
from tests.simulation.store.execution import Execution

P = ParamSpec("P")
R = TypeVar("R")
Function = Callable[Concatenate[Execution, P], Coroutine[Any, Any, R]]


class Repertoire(dict[Statement[..., Any], Function[..., Any]]):
    """Functions by the statement that they carry out."""

    def carries_out(self, statement: Statement[P, R]) -> Callable[[Function[P, R]], Function[P, R]]:
        """The decorated function does to the tables what the statement's SQL does."""

        def add(function: Function[P, R]) -> Function[P, R]:
            assert statement not in self, statement
            self[statement] = function
            return function

        return add

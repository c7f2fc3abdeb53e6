"""Statements: the queries and updates that are sent to the database, each one SQL statement behind a typed function.

Decisions between statements (which lease may write, what ends with what) are plain functions that call statements. A
connection that is not Postgres's, an `Interpreter`, carries out statements in its own way; all functions that are built
on statements then run on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import asyncpg

P = ParamSpec("P")
R = TypeVar("R")


class Interpreter(ABC):
    """A connection that is not Postgres's."""

    @abstractmethod
    async def carry_out(self, statement: Statement[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do what the statement's SQL would do, and return what it would return."""


class Statement(Generic[P, R]):
    """A function that runs one SQL statement, made by the decorator `statement`."""

    def __init__(self, sql: Callable[Concatenate[asyncpg.Connection, P], Coroutine[Any, Any, R]]) -> None:
        self._sql = sql
        self.name = f"{sql.__module__.rpartition('.')[2]}.{sql.__name__}"
        self.__doc__ = sql.__doc__

    def __repr__(self) -> str:
        return f"<statement {self.name}>"

    def __call__(
        self, conn: asyncpg.Connection | Interpreter, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run the statement on the connection."""
        if isinstance(conn, Interpreter):
            return conn.carry_out(self, *args, **kwargs)
        return self._sql(conn, *args, **kwargs)


def statement(sql: Callable[Concatenate[asyncpg.Connection, P], Coroutine[Any, Any, R]]) -> Statement[P, R]:
    """Turn a function of a connection that runs one SQL statement into a Statement."""
    return Statement(sql)

"""Statements: SQL on Postgres's connections, and whatever another kind of connection makes of them."""

from typing import Any
from uuid import uuid4

from coordinator.database.connections import Database
from coordinator.store import leases
from coordinator.store.statement import Interpreter


class Noted(Interpreter):
    """Answers every statement with its name and arguments."""

    async def carry_out(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        return statement.name, args, kwargs


async def test_another_kind_of_connection_is_handed_the_statement_and_its_arguments() -> None:
    lease = uuid4()
    told: object = await leases.find_run(Noted(), lease)
    assert told == ("leases.find_run", (lease,), {})


async def test_on_postgres_it_runs_its_sql(db: Database) -> None:
    async with db.connection() as conn:
        assert await leases.find_run(conn, uuid4()) is None

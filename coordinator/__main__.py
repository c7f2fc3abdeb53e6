"""`relay-coordinator serve` and `relay-coordinator migrate`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import uvloop

from coordinator import config, server
from coordinator.database import migrate, postgres
from coordinator.database.connections import DatabaseAway
from relay import logs
from relay.settings import MISCONFIGURED, SettingsError, add_flags, make_parser, read_settings
from storage.exit import end_process

DESCRIPTION = "Serves Relay's coordinator, or brings its database to this version's schema."
SERVE = """Serve until SIGTERM or SIGINT, then hand over. Off loopback RELAY_SHARED_SECRET (or
RELAY_SHARED_SECRET_FILE) must be set, which agents and clients then present."""
MIGRATE = """Bring the database to this version's schema: a job to run once before a new version is rolled out."""


def read_command(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[Coroutine[Any, Any, None], str | None]:
    """Return the work of the command and the URL of its database; SettingsError when something is wrong."""
    parser = make_parser("relay-coordinator", DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="{serve,migrate}", required=True)
    add_flags(commands.add_parser("serve", help=SERVE, description=SERVE), config.Config)
    add_flags(commands.add_parser("migrate", help=MIGRATE, description=MIGRATE), config.DatabaseConfig)
    given = parser.parse_args(arguments or ["-h"])
    if given.command == "serve":
        settings = read_settings(config.Config, given, environment)
        return _serve_until_signal(settings), settings.database_url
    database = read_settings(config.DatabaseConfig, given, environment)
    return _migrate(database.database_url, database.data_dir.expanduser()), database.database_url


async def _migrate(database_url: str | None, data_dir: Path) -> None:
    async with server.open_database(database_url, data_dir) as url:
        await migrate.upgrade(url)
    print("the database is at this version's schema")


async def _serve_until_signal(settings: config.Config) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def request_stop(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)  # the second time it ends us at once

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, request_stop, number)
    await server.serve(settings, stop, lambda running: _announce(settings, running))


def _announce(settings: config.Config, running: server.ServerInfo) -> None:
    place = "embedded, kept in " + str(settings.data_dir.expanduser() / "postgres")
    print(f"listening on {running.address} (deployment {running.deployment_id})")
    print(f"  database   {_without_password(running.database_url) if settings.database_url else place}")
    if not settings.database_url:
        option = "--artifact-store" if settings.artifact_store else "--artifact-dir"
        print(f"  second     --database-url '{running.database_url}' {option} {running.store}")
    print(f"  artifacts  {running.store}", flush=True)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _run(main: Coroutine[Any, Any, None], database_url: str | None) -> None:
    """Run to the end; what its user can put right is one line, anything else a traceback."""
    logs.configure()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        uvloop.run(main)
    except (SettingsError, migrate.SchemaError, postgres.PostgresError) as error:
        sys.exit(f"relay-coordinator: {error}")
    except ExceptionGroup as several:  # what is wrong was found when the services were up already
        if (wrong := several.subgroup(SettingsError)) is None:
            raise
        sys.exit(f"relay-coordinator: {wrong.exceptions[0]}")
    except (OSError, asyncpg.PostgresError, DatabaseAway) as error:
        named = f"the database {_without_password(database_url)}" if database_url else "the embedded database"
        why = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else error
        sys.exit(f"relay-coordinator: {named} cannot be used: {why}")


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out a command line; return the exit code."""
    try:
        work, database_url = read_command(arguments, environment)
    except SettingsError as error:
        print(f"relay-coordinator: {error}", file=sys.stderr)
        return MISCONFIGURED
    _run(work, database_url)
    return 0


def main() -> None:
    """The entry point of `relay-coordinator`."""
    try:
        code = run(sys.argv[1:], os.environ)
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        code = ended.code
    end_process(code)


if __name__ == "__main__":
    main()

"""`relay-coordinator serve` and `relay-coordinator migrate`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import typer
import uvloop

from coordinator import config, server
from coordinator.artifacts.garbage_collection import Pace
from coordinator.database import migrate, postgres
from relay import timing
from runfile import UnitError, parse_duration, parse_size
from storage.exit import end

T = TypeVar("T")

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)
Timing = StrEnum("Timing", sorted(timing.PROFILES))  # type: ignore[misc]  # names known to `relay.timing` only

_DEFAULT_TIMING = Timing("default")

DatabaseUrl = Annotated[
    str | None,
    typer.Option(envvar="RELAY_DATABASE_URL", show_envvar=True, help="postgresql://…; none: an embedded server."),
]
DataDir = Annotated[Path, typer.Option(envvar="RELAY_DATA_DIR", help="Where the coordinator keeps what is its own.")]
Listen = Annotated[str, typer.Option(envvar="RELAY_LISTEN", help="host:port; port 0 takes a free one.")]
ArtifactDir = Annotated[
    Path | None,
    typer.Option(envvar="RELAY_ARTIFACT_DIR", help="Shared by replicas.", show_default="DATA_DIR/artifacts"),
]
ArtifactStore = Annotated[
    str | None,
    typer.Option(envvar="RELAY_ARTIFACT_STORE", show_envvar=True, help="s3://BUCKET/PREFIX, instead of a folder."),
]
ArtifactLimit = Annotated[
    str, typer.Option(envvar="RELAY_ARTIFACT_LIMIT", help="All artifacts together, e.g. 500GiB or 2TiB.")
]
ArtifactGrace = Annotated[
    str, typer.Option(envvar="RELAY_ARTIFACT_GRACE", help="How long artifacts stay that nothing names, e.g. 24h.")
]
TimingProfile = Annotated[Timing, typer.Option("--timing", envvar="RELAY_TIMING", help="How long leases last.")]


@app.command()
def serve(
    listen: Listen = "127.0.0.1:7070",
    database_url: DatabaseUrl = None,
    data_dir: DataDir = config.DEFAULT_DATA_DIR,
    artifact_dir: ArtifactDir = None,
    artifact_store: ArtifactStore = None,
    artifact_limit: ArtifactLimit = "200GiB",
    artifact_grace: ArtifactGrace = "24h",
    timing_profile: TimingProfile = _DEFAULT_TIMING,
) -> None:
    """Serve until SIGTERM or SIGINT, then hand over.

    Off loopback it needs RELAY_SHARED_SECRET (or RELAY_SHARED_SECRET_FILE), which agents and clients then present.
    """
    try:
        settings = config.Config(
            listen=listen,
            database_url=database_url,
            data_dir=data_dir,
            artifact_dir=artifact_dir,
            artifact_store=artifact_store,
            artifact_limit=_parsed("--artifact-limit", parse_size, artifact_limit),
            collecting=_pace(_parsed("--artifact-grace", parse_duration, artifact_grace)),
            timing=timing.PROFILES[timing_profile],
            secret=config.read_secret(os.environ),
        )
    except config.ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    _run(_serve_until_told(settings), database_url)


def _parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except UnitError as error:
        raise config.ConfigError(f"{option}: {error}") from error


def _pace(grace: float) -> Pace:
    return Pace(every=min(Pace().every, grace), grace=grace)


@app.command("migrate")
def migrate_command(database_url: DatabaseUrl = None, data_dir: DataDir = config.DEFAULT_DATA_DIR) -> None:
    """Bring the database to this version's schema: a job to run once before a new version is rolled out."""
    _run(_migrate(database_url, data_dir.expanduser()), database_url)


async def _migrate(database_url: str | None, data_dir: Path) -> None:
    if database_url is not None:
        config.check_database_url(database_url)
    async with server.database_at(database_url, data_dir) as url:
        await migrate.upgrade(url)
    print("the database is at this version's schema")


async def _serve_until_told(settings: config.Config) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def told(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)  # the second time it ends us at once

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)
    await server.serve(settings, stop, lambda running: _announce(settings, running))


def _announce(settings: config.Config, running: server.Running) -> None:
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
    """Run to the end; what a person can put right is one line, anything else a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        uvloop.run(main)
    except (config.ConfigError, migrate.SchemaError, postgres.PostgresError) as error:
        sys.exit(f"relay-coordinator: {error}")
    except ExceptionGroup as several:  # what is wrong was found when the services were up already
        if (wrong := several.subgroup(config.ConfigError)) is None:
            raise
        sys.exit(f"relay-coordinator: {wrong.exceptions[0]}")
    except (OSError, asyncpg.PostgresError) as error:
        named = f"the database {_without_password(database_url)}" if database_url else "the embedded database"
        why = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else error
        sys.exit(f"relay-coordinator: {named} cannot be used: {why}")


def main() -> None:
    """The entry point."""
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            end(ended.code)
        raise


if __name__ == "__main__":
    main()

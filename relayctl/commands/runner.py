"""Running a command: connect, await its coroutine, and turn every failure into one message and an exit code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import NoReturn

import typer

from relay import errors
from relayctl.client import CallFailed, CoordinatorUnreachable, PullFailed, RelayClient, SendFailed
from relayctl.client.context import ClientContext, resolve
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.output.terminal import Terminal, note

Work = Callable[[RelayClient, Terminal], Awaitable[ExitCode]]


def run_command(context: typer.Context, work: Work, on_interrupt: str = "") -> NoReturn:
    """Run a command's coroutine with a connected client and exit with its code; Ctrl-C prints `on_interrupt`."""
    raise typer.Exit(_run_to_exit_code(context.obj, work, on_interrupt))


def _run_to_exit_code(coordinator: str | None, work: Work, on_interrupt: str) -> ExitCode:
    try:
        return asyncio.run(_run_connected(coordinator, work))
    except KeyboardInterrupt:
        note(f"\n{on_interrupt}" if on_interrupt else "")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.OK
    except Exception as error:
        failure = describe_failure(error)
        if failure is None:
            raise
        note(failure[0])
        return failure[1]


async def _run_connected(coordinator: str | None, work: Work) -> ExitCode:
    chosen = _resolve_context(coordinator)
    async with RelayClient.connect(chosen.coordinator, chosen.secret) as client:
        return await work(client, Terminal.current())


def _resolve_context(coordinator: str | None) -> ClientContext:
    try:
        return resolve(coordinator)
    except ValueError as error:
        raise UsageMistake(str(error)) from error


def describe_failure(error: Exception) -> tuple[str, ExitCode] | None:
    """Return the message and the exit code of a failure that users can act on, or None for a defect of relayctl."""
    match error:
        case UsageMistake():
            return str(error), ExitCode.USAGE
        case CoordinatorUnreachable():
            return str(error), ExitCode.UNREACHABLE
        case errors.SpecInvalid() | errors.InvalidRequest() | CallFailed():  # the message says what would be right
            return str(error), ExitCode.REFUSED
        case errors.RelayError():
            remedy = error.remedy() if error.reason in errors.BY_REASON else ""  # none for a newer coordinator's
            return f"{str(error).rstrip('.')}. {remedy}" if remedy else str(error), ExitCode.REFUSED
        case PullFailed() | SendFailed():
            return str(error), ExitCode.ERROR
        case OSError():
            return f"{error.filename}: {error.strerror}" if error.filename else str(error), ExitCode.ERROR
        case ValueError():
            return _describe_file_mistakes(error)
    return None


def _describe_file_mistakes(error: ValueError) -> tuple[str, ExitCode] | None:
    from relayctl.local.external_checkpoints import NotImportable
    from runfile import RunFileErrors  # loads slowly, and is loaded already where it can be raised

    return (str(error), ExitCode.ERROR) if isinstance(error, RunFileErrors | NotImportable) else None

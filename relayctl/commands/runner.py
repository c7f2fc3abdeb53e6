"""Carries a command out: connects, and turns every way to fail into one clear message and an exit code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from relay import errors
from relayctl.client import context
from relayctl.client.artifacts import PullFailed, SendFailed
from relayctl.client.channel import CallFailed, Unreachable
from relayctl.client.client import RelayClient
from relayctl.commands.exits import ExitCode
from relayctl.commands.looking import UsageMistake
from relayctl.local.external_checkpoints import NotImportable
from relayctl.output.format import block
from relayctl.output.serialize import Output, single
from relayctl.output.terminal import Terminal, note, say
from runfile import RunFileErrors, UnitError

Work = Callable[[RelayClient, Terminal], Awaitable[ExitCode]]


def carry_out(coordinator: str | None, work: Work, leaving: str = "") -> ExitCode:
    """Runs the command; `leaving` is said when it is left by Ctrl-C."""
    try:
        return asyncio.run(_connected(coordinator, work))
    except KeyboardInterrupt:
        note(f"\n{leaving}" if leaving else "")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.OK
    except (RunFileErrors, PullFailed, SendFailed, NotImportable) as error:
        note(str(error))
        return ExitCode.ERROR
    except (UsageMistake, UnitError) as error:
        note(str(error))
        return ExitCode.USAGE
    except Unreachable as error:
        note(str(error))
        return ExitCode.UNREACHABLE
    except (errors.RelayError, CallFailed) as error:
        note(refusal(error))
        return ExitCode.REFUSED
    except OSError as error:
        note(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return ExitCode.ERROR


async def _connected(coordinator: str | None, work: Work) -> ExitCode:
    chosen = _context(coordinator)
    async with RelayClient.connect(chosen.coordinator, chosen.secret) as client:
        return await work(client, Terminal.current())


def _context(coordinator: str | None) -> context.Context:
    try:
        return context.resolve(coordinator)
    except ValueError as error:
        raise UsageMistake(str(error)) from error


_NEXT: dict[type[Exception], str] = {
    errors.RunUnknown: "see them all with: relayctl runs -a",
    errors.CheckpointRemoved: "what is left: relayctl checkpoints RUN",
    errors.RunExists: "it was made from something else, so choose another name with --name",
    errors.Unauthenticated: "set RELAY_SHARED_SECRET to the coordinator's",
}


def refusal(error: Exception) -> str:
    """What was refused, and what to do about it."""
    hint = _NEXT.get(type(error))
    return f"{str(error).rstrip('.')}; {hint}" if hint else str(error)


def configure(coordinator: str | None, use: str | None, output: Output) -> ExitCode:
    """Shows the context in force, or makes an address the default."""
    try:
        if use:
            note(f"wrote {context.write(context.checked(use))}")
        entries = context.described(context.resolve(coordinator))
    except ValueError as error:
        note(str(error))
        return ExitCode.USAGE
    if output in (Output.JSON, Output.JSONL, Output.YAML):
        say(single(entries, output))
    else:
        say(entries["coordinator"] if output is Output.NAME else block(list(entries.items())))
    return ExitCode.OK

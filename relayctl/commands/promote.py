"""`relayctl promote`: make `main` of a Hub repository a run's model."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated

import typer
from google.protobuf import json_format

from relayctl.client.client import RelayClient, shorten_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import RunName
from relayctl.commands.runner import run_command
from relayctl.output.terminal import Terminal, note, say
from storage.base import StoreRefused, StoreUnavailable
from storage.hub.worker import HubWorker


def promote(
    context: typer.Context,
    run: RunName,
    repo: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Promote in this repository [the run file's].", show_default=False),
    ] = None,
) -> None:
    """Make `main` of a Hub repository a run's model.

    HF_TOKEN must be allowed to write to the repository. What `main` held before is in its history.
    """
    run_command(context, partial(_promote, run, repo))


async def _promote(name: str, repo: str | None, client: RelayClient, terminal: Terminal) -> ExitCode:
    run = await client.get_run(name)
    name = shorten_name(run.name)
    repo = repo or json_format.MessageToDict(run.spec).get("hub", {}).get("repo")
    if not repo:
        note(f"{name} has no hub section; name a repository: --repo OWNER/NAME")
        return ExitCode.USAGE
    try:
        done = await HubWorker(sys.executable, os.environ).run_job("promote_model", repo=repo, run=name)
    except StoreRefused as error:
        note(f"{name} is not promoted: {error}")
        return ExitCode.REFUSED
    except StoreUnavailable as error:
        note(f"the Hub cannot be reached; try again: {error}")
        return ExitCode.UNREACHABLE
    say(f"main of {repo} is {name}'s (commit {done['commit'][:8]}); what it held is in its history")
    return ExitCode.OK

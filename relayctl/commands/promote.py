"""What a person does with a run on the Hugging Face Hub."""

from __future__ import annotations

import os
import sys

from google.protobuf import json_format

from relayctl.client.client import RelayClient, short
from relayctl.commands.exits import ExitCode
from relayctl.output.terminal import note, say
from storage.base import StoreRefused, StoreUnavailable
from storage.hub.worker import HubWorker


async def promote(client: RelayClient, run: str, repo: str | None) -> ExitCode:
    """`main` becomes the run's."""
    found = await client.run(run)
    name = short(found.name)
    repo = repo or json_format.MessageToDict(found.spec).get("hub", {}).get("repo")
    if not repo:
        note(f"{name} says nothing of the Hub; name its repository: --repo OWNER/NAME")
        return ExitCode.USAGE
    try:
        done = await HubWorker(sys.executable, os.environ).run_job("promote_model", repo=repo, run=name)
    except StoreRefused as refused:
        note(f"{name} is not promoted: {refused}")
        return ExitCode.REFUSED
    except StoreUnavailable as away:
        note(f"the Hub cannot be reached; try again: {away}")
        return ExitCode.UNREACHABLE
    say(f"main of {repo} is {name}'s (commit {done['commit'][:8]}); what it held is in its history")
    return ExitCode.OK

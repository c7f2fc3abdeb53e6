"""The commands about a run's checkpoints: listed with why each stays, pinned and unpinned."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime

from relayctl.client.client import RelayClient, short
from relayctl.commands import checkpoint_ref
from relayctl.commands.exits import ExitCode
from relayctl.commands.looking import UsageMistake, machine, say_all, shown
from relayctl.output import views
from relayctl.output.serialize import Output, plain, single
from relayctl.output.terminal import Terminal, say

_VERBS = ("pin", "unpin")


async def listed(client: RelayClient, run: str, terminal: Terminal, output: Output, *, every: bool) -> ExitCode:
    """The checkpoints of a run."""
    found = await client.checkpoints(run, include_superseded=every, include_removed=every)
    table = views.checkpoints_table(found, datetime.now(UTC), wide=output is Output.WIDE, width=terminal.width)
    say_all(shown("checkpoints", found, output, table if found else f"{run} has no checkpoints yet"))
    return ExitCode.OK


async def pin(client: RelayClient, point: str, output: Output, *, pinned: bool, reason: str) -> ExitCode:
    """Makes a checkpoint stay, or leaves it to the run file again."""
    chosen = await checkpoint_ref.at(client, point)
    changed = await (client.pin(chosen.name, reason) if pinned else client.unpin(chosen.name))
    if output is Output.NAME:
        say(short(changed.name))
    elif machine(output):
        say(single(plain(changed), output))
    else:
        run = point.partition("@")[0]
        say(f"step {changed.step} of {run} " + ("stays" if pinned else "stays for as long as the run file says"))
    return ExitCode.OK


def mistaken(words: Sequence[str]) -> UsageMistake:
    """What was probably meant."""
    close = difflib.get_close_matches(words[0], _VERBS, n=1, cutoff=0.6)
    if close and len(words) == 2:
        return UsageMistake(f"did you mean: relayctl checkpoints {close[0]} {words[1]}")
    return UsageMistake("write: relayctl checkpoints RUN, or checkpoints pin RUN@STEP, or checkpoints unpin RUN@STEP")

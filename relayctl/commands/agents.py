"""`relayctl agents`: list the hosts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import typer

from relayctl.client.client import RelayClient
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format, Labels, Quiet, parse_labels
from relayctl.commands.runner import run_command
from relayctl.output.agents import format_agents_table
from relayctl.output.serialize import Output, format_list
from relayctl.output.terminal import Terminal, say


def list_agents(
    context: typer.Context, labels: Labels = None, output: Format = Output.TABLE, quiet: Quiet = False
) -> None:
    """List the hosts: their hardware, state and runs."""
    run_command(context, partial(_list, labels or (), Output.NAME if quiet else output))


async def _list(labels: Sequence[str], output: Output, client: RelayClient, terminal: Terminal) -> ExitCode:
    agents = await client.list_agents(parse_labels(labels))
    table = format_agents_table(agents, datetime.now(UTC), wide=output is Output.WIDE, width=terminal.width)
    none = "no agents match" if labels else "no agents; start one on a host with: relay-agent"
    if text := format_list("agents", agents, output, table if agents else none):
        say(text)
    return ExitCode.OK

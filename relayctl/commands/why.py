"""`relayctl why`: why a run is in its state, at length."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import typer

from relay.v1 import fleet_pb2
from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient, shorten_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format, RunName
from relayctl.commands.runner import run_command
from relayctl.output.agents import format_agents_table
from relayctl.output.format import format_span, make_printable, to_datetime
from relayctl.output.runs import describe_attempt, describe_state, list_remedies
from relayctl.output.serialize import Output, format_value, to_plain
from relayctl.output.terminal import Terminal, say

_FIELDS = ("name", "state", "reason", "error", "failures", "faults")  #: of the run, in output for programs


def explain_run(context: typer.Context, run: RunName, output: Format = Output.TABLE) -> None:
    """Explain at length why a run is in its state."""
    run_command(context, partial(_explain, run, output))


async def _explain(name: str, output: Output, client: RelayClient, terminal: Terminal) -> ExitCode:
    run = await client.get_run(name)
    attempts = await client.list_attempts(name)
    if output is Output.NAME:
        say(shorten_name(run.name))
    elif output.for_programs:
        value = {key: to_plain(run).get(key) for key in _FIELDS}
        say(format_value({**value, "attempts": [to_plain(attempt) for attempt in attempts]}, output))
    else:
        agents = await client.list_agents() if run.state == pb.Run.QUEUED else []
        say(format_explanation(run, attempts, agents, datetime.now(UTC)))
    return ExitCode.OK


def format_explanation(
    run: pb.Run, attempts: Sequence[pb.Attempt], agents: Sequence[fleet_pb2.Agent], now: datetime
) -> str:
    """Return the state and its reason, the attempts, the error, what to do, and for a queued run the agents."""
    parts = [f"{shorten_name(run.name)} {describe_state(run)}"]
    if run.failures or run.faults:
        parts.append(f"failures of its own: {run.failures}; faults of the infrastructure: {run.faults}")
    if run.HasField("eligible_time") and to_datetime(run.eligible_time) > now:
        wait = format_span((to_datetime(run.eligible_time) - now).total_seconds())
        parts.append(f"not granted for another {wait} (back-off)")
    if attempts:
        parts += ["attempts:", *(f"  {line}" for a in attempts for line in describe_attempt(a, now).splitlines())]
    if error := _list_further_lines(run.error.message):
        parts += ["the error:", *(f"  {line}" for line in error)]
    if remedies := list_remedies(run, attempts):
        parts += ["what to do:", *(f"  {line}" for line in remedies)]
    if run.state == pb.Run.QUEUED:
        parts += ["hosts:", *(f"  {line}" for line in format_agents_table(agents, now).splitlines())]
    return "\n".join(parts)


def _list_further_lines(message: str) -> list[str]:
    """Return the lines of an error, or none of one that has a single line, which is shown with the state already."""
    lines = [make_printable(line) for line in message.splitlines()]
    return lines if len(lines) > 1 else []

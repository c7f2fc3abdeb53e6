"""`relayctl show`: one run with its progress, attempts, newest checkpoint and result."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient, shorten_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format, RunName
from relayctl.commands.runner import run_command
from relayctl.output.format import (
    format_ago,
    format_block,
    format_bytes,
    format_pairs,
    format_span,
    make_printable,
    to_datetime,
)
from relayctl.output.runs import (
    describe_attempt,
    describe_output,
    format_metrics,
    format_progress,
    format_state,
    format_stores,
    list_remedies,
)
from relayctl.output.serialize import Output, format_value, to_plain
from relayctl.output.terminal import Terminal, say


def show_run(
    context: typer.Context,
    run: RunName,
    spec: Annotated[bool, typer.Option("--spec", help="Show the resolved run file, as YAML.")] = False,
    output: Format = Output.TABLE,
) -> None:
    """Show one run: state, progress, attempts, newest checkpoint."""
    run_command(context, partial(_show, run, spec, output))


async def _show(name: str, spec: bool, output: Output, client: RelayClient, terminal: Terminal) -> ExitCode:
    run = await client.get_run(name)
    if spec:
        say(format_value(to_plain(run)["spec"], Output.YAML if output is Output.TABLE else output))
    elif output.for_programs:
        say(format_value(to_plain(run), output))
    elif output is Output.NAME:
        say(shorten_name(run.name))
    else:
        say(format_run(run, await client.list_attempts(name), datetime.now(UTC)))
    return ExitCode.OK


def format_run(run: pb.Run, attempts: Sequence[pb.Attempt], now: datetime) -> str:
    """Return everything about a run as aligned lines."""
    ended = run.HasField("end_time")
    duration = (to_datetime(run.end_time) if ended else now) - to_datetime(run.create_time)
    name = shorten_name(run.name)
    return format_block(
        [
            ("run", name),
            ("state", format_state(run)),
            (
                "progress",
                "   ".join(filter(None, [format_progress(run.progress), format_metrics(run.progress.metrics)])),
            ),
            ("submitted", f"{format_ago(to_datetime(run.create_time), now)}{_describe_provenance(run.provenance)}"),
            ("took" if ended else "so far", format_span(duration.total_seconds())),
            ("labels", format_pairs(run.labels)),
            ("pinned", ", ".join(f"{key} {value}" for key, value in sorted(run.pins.items()))),
            ("head", _describe_checkpoint(run.head) if run.HasField("head") else ""),
            ("output", describe_output(run.output, name) if run.HasField("output") else ""),
            ("attempts", "\n".join(describe_attempt(attempt, now) for attempt in attempts)),
            ("to do", "\n".join(list_remedies(run, attempts))),
        ]
    )


def _describe_provenance(provenance: pb.Provenance) -> str:
    text = f" by {make_printable(provenance.submitter)}" if provenance.submitter else ""
    if provenance.commit:
        text += f", commit {provenance.commit[:10]}{' with changes' if provenance.diff_digest else ''}"
    return text


def _describe_checkpoint(checkpoint: pb.Checkpoint) -> str:
    """Return a checkpoint's step, size and places: `step 120 (attempt 1), 12.0 MiB on relay, host-a`."""
    total, stores = sum(part.size for part in checkpoint.parts), format_stores(checkpoint)
    on = f" on {stores}" if stores else ""
    return f"step {checkpoint.step} (attempt {checkpoint.attempt}), {format_bytes(total)}{on}"

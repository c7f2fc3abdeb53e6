"""`relayctl samples`: completions that the model in training made, and its rollouts with their rewards."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient, shorten_name
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format, RunName
from relayctl.commands.runner import run_command
from relayctl.output.format import format_number, make_printable
from relayctl.output.serialize import Output, format_values, to_plain
from relayctl.output.terminal import Terminal, note, say

_QUOTED = 1000  #: characters of a text that are shown, unless all of it is


def show_samples(
    context: typer.Context,
    run: RunName,
    step: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Show the samples of this step.", show_default=False)
    ] = None,
    steps: Annotated[
        int, typer.Option("-n", "--steps", min=1, metavar="N", help="Show the samples of the last N steps.")
    ] = 1,
    all: Annotated[bool, typer.Option("-a", "--all", help="Show the samples of all steps.")] = False,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Show only samples of this kind: prompt or rollout.", show_default=False),
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Show what the model writes: completions, rollouts with rewards.

    Completions are of the same prompts over time. Long texts are cut; -o wide shows them whole.
    """
    run_command(context, partial(_show, run, step, 0 if all else steps, kind or "", output))


async def _show(
    run: str, step: int | None, last_steps: int, kind: str, output: Output, client: RelayClient, terminal: Terminal
) -> ExitCode:
    samples = await client.read_samples(run, kind=kind, step=step, last_steps=last_steps)
    if output.for_programs:
        if text := format_values("samples", [to_plain(sample) for sample in samples], output):
            say(text)
    elif samples:
        say("\n\n".join(format_sample(sample, whole=output is Output.WIDE) for sample in samples))
    elif step is not None or kind:
        note(f"{run} has no such samples; all: relayctl samples {shorten_name(run)} --all")
    else:
        note(f"{run} has no samples; `samples: {{prompts: 8, every: 50}}` in the run file asks for them")
    return ExitCode.OK


def format_sample(sample: pb.Sample, *, whole: bool) -> str:
    """Return a completion below its prompt; long texts are cut unless `whole`."""
    rewards = "".join(
        f"  {make_printable(name)} {format_number(sample.rewards[name])}" for name in sorted(sample.rewards)
    )
    prompt, completion = (_indent(text, whole) for text in (sample.prompt, sample.completion))
    return "\n".join([f"step {sample.step}  {sample.kind}{rewards}", f"    {prompt}", f"  → {completion}"])


def _indent(text: str, whole: bool) -> str:
    """Return the lines of a text below each other; of a long text only its end."""
    shown = text if whole or len(text) <= _QUOTED else "…" + text[-_QUOTED:]
    return "\n    ".join(make_printable(line) for line in shown.splitlines()) or "(nothing)"

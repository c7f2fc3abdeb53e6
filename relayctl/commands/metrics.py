"""`relayctl metrics`: a run's curves as a table, as plots, as a picture, or with every point."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from relayctl.client.client import RelayClient, shorten_name
from relayctl.commands.exits import ExitCode, UsageMistake
from relayctl.commands.options import Format, RunName
from relayctl.commands.runner import run_command
from relayctl.output.curves import MetricCurve, choose_curves, join_segments, plot_in_terminal, write_png
from relayctl.output.format import format_number, format_table
from relayctl.output.serialize import Output, format_values
from relayctl.output.terminal import Terminal, note, say


def show_metrics(
    context: typer.Context,
    run: RunName,
    names: Annotated[list[str] | None, typer.Argument(metavar="[METRIC…]", show_default=False)] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the curves in the terminal.")] = False,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the curves into a PNG file.", show_default=False)
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Show a run's metrics: one curve each, from all attempts.

    The table has the newest value of each metric and its range; -o json has every point.
    """
    if plot or png:
        run_command(context, partial(_draw, run, names or [], plot, png))
    run_command(context, partial(_print, run, names or [], output))


async def _read_curves(client: RelayClient, run: str, names: Sequence[str]) -> list[MetricCurve]:
    curves = join_segments(await client.read_metrics(run, names))
    if absent := set(names) - {curve.name for curve in curves}:
        known = ", ".join(curve.name for curve in join_segments(await client.read_metrics(run)))
        missing = ", ".join(f'"{name}"' for name in sorted(absent))
        raise UsageMistake(f"{run} has no metric {missing}; it has {known or 'none yet'}")
    return curves


async def _draw(
    run: str, names: Sequence[str], plot: bool, png: Path | None, client: RelayClient, terminal: Terminal
) -> ExitCode:
    curves = choose_curves(await _read_curves(client, run, names), names)
    if not curves:
        note(f"{run} has no points yet")
        return ExitCode.OK
    if plot:
        say(plot_in_terminal(curves, terminal.width))
    if png:
        await asyncio.to_thread(write_png, curves, png, shorten_name(run))
        note(f"wrote {png}")
    return ExitCode.OK


async def _print(run: str, names: Sequence[str], output: Output, client: RelayClient, terminal: Terminal) -> ExitCode:
    curves = await _read_curves(client, run, names)
    if output.for_programs:
        text = format_values("metrics", [_to_plain(curve) for curve in curves], output)
    elif output is Output.NAME:
        text = "\n".join(curve.name for curve in curves)
    else:
        text = format_metrics_table(curves, terminal.width) if curves else f"{run} has no points yet"
    if text:
        say(text)
    return ExitCode.OK


def format_metrics_table(curves: Sequence[MetricCurve], width: int | None = None) -> str:
    """Return the table of curves: the newest value of each metric, and its range."""
    rows = []
    for curve in curves:
        numbers = [value for value in curve.values if not math.isnan(value)]
        low, high = (format_number(min(numbers)), format_number(max(numbers))) if numbers else ("", "")
        last = format_number(curve.values[-1])
        rows.append([curve.name, str(curve.steps[-1]), last, low, high, str(len(curve.steps))])
    return format_table(["METRIC", "STEP", "LAST", "MIN", "MAX", "POINTS"], rows, width)


def _to_plain(curve: MetricCurve) -> dict[str, Any]:
    values = [value if math.isfinite(value) else str(value) for value in curve.values]
    return {"name": curve.name, "steps": list(curve.steps), "values": values, "restarts": list(curve.restarts)}

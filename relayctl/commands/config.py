"""`relayctl config`: show which coordinator is used and why, or set the default."""

from __future__ import annotations

from typing import Annotated

import typer

from relayctl.client.context import check_address, describe, resolve, write_context
from relayctl.commands.exits import ExitCode
from relayctl.commands.options import Format
from relayctl.output.format import format_block
from relayctl.output.serialize import Output, format_value
from relayctl.output.terminal import note, say


def configure(
    context: typer.Context,
    use: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Make this coordinator the default.", show_default=False),
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Show which coordinator is used and why; set the default."""
    try:
        if use:
            note(f"wrote {write_context(check_address(use))}")
        entries = describe(resolve(context.obj))
    except ValueError as error:
        note(str(error))
        raise typer.Exit(ExitCode.USAGE) from None
    if output.for_programs:
        say(format_value(entries, output))
    else:
        say(entries["coordinator"] if output is Output.NAME else format_block(list(entries.items())))

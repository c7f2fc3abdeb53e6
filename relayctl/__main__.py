"""The entry point of `relayctl`; its commands are in `relayctl.commands`, the table of them is in `command_group`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from relayctl.command_group import CommandGroup
from storage.exit import end_process

app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        from relay.settings import version

        typer.echo(f"relayctl {version()}".rstrip())
        raise typer.Exit


@app.callback()
def relayctl(
    context: typer.Context,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Talk to this coordinator [RELAY_COORDINATOR, else the one that `up` or `config` made the default].",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Training runs that survive their hosts: submit them, watch them, fetch their results."""
    context.obj = coordinator


def main() -> None:
    """Run the command line and end the process with the command's exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's notes on forks and proxies are not for users
    try:
        app(prog_name="relayctl")
    except SystemExit as ended:
        if isinstance(ended.code, int):
            end_process(ended.code)
        raise


if __name__ == "__main__":
    main()

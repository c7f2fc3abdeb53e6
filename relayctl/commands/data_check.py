"""`relayctl data check`: check the rows that runs train on with the trainers' own reader, before submitting a run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Annotated

import typer

from relayctl.commands.exits import ExitCode
from relayctl.output.terminal import note

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
_USAGE = 78  #: exit code of `python -m trainers` for a usage mistake


@app.callback()
def data() -> None:
    """Check the rows that runs train on."""


@app.command()
def check(
    files: Annotated[
        list[str],
        typer.Argument(help="Files, globs, folders, hf://owner/dataset.", metavar="FILE…", show_default=False),
    ],
    method: Annotated[str, typer.Option(help="Check for this training method: sft, dpo, grpo, ….", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="Count the tokens of this model (folder or Hub name), show what it sees.", show_default=False
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="Read the rows as this format.")] = "auto",
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="OLD=NEW", help="Rename a column.", show_default=False)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Count what options.max_length cuts off.", show_default=False)
    ] = None,
    assistant_only_loss: Annotated[
        bool, typer.Option("--assistant-only-loss", help="Check for options.assistant_only_loss.")
    ] = False,
) -> None:
    """Report the format of rows, mistakes in them, their lengths, and what the model sees.

    The exit code is 1 when a row has a mistake. This needs Relay's trainers on this machine.
    """
    if importlib.util.find_spec("trainers") is None or importlib.util.find_spec("trl") is None:
        note("checking rows needs Relay's trainers on this machine: pip install 'relay-training[trainers]'")
        raise typer.Exit(ExitCode.ERROR)
    arguments = [f"--method={method}", f"--format={format}", *(f"--column={each}" for each in columns or ())]
    arguments += [f"--model={model}"] if model is not None else []
    arguments += [f"--max-length={max_length}"] if max_length is not None else []
    arguments += ["--assistant-only-loss"] if assistant_only_loss else []
    done = subprocess.run([sys.executable, "-m", "trainers", "data", *arguments, "--", *files])
    raise typer.Exit(ExitCode.USAGE if done.returncode == _USAGE else done.returncode)

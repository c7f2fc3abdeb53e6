"""`relayctl data check`: rows looked at here, by the trainers' own reader, before a run is submitted."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Annotated

import typer

from relayctl.commands.exits import ExitCode

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
_CANNOT = 78  #: of `python -m trainers`: what was asked for makes no sense


@app.callback()
def data() -> None:
    """Look at the rows that runs train on."""


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(help="Files, globs, folders, hf://owner/dataset.", show_default=False)],
    method: Annotated[str, typer.Option(help="What is to be trained: sft, dpo, grpo, …", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name: count its tokens, show what it sees.", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option(help="What the rows are, where looking does not tell.")] = "auto",
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="OLD=NEW", help="Rename one.", show_default=False)
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="As options.max_length.", show_default=False)] = None,
    assistant_only_loss: Annotated[bool, typer.Option("--assistant-only-loss", help="As in options.")] = False,
) -> None:
    """Say what rows are, what is wrong with them, how long they are, and what the model will see.

    The exit code is 1 when something is wrong with a row. Needs Relay's trainers on this machine.
    """
    if importlib.util.find_spec("trainers") is None or importlib.util.find_spec("trl") is None:
        from relayctl.output.terminal import note

        note("looking at rows needs Relay's trainers on this machine: pip install 'relay-training[trainers]'")
        raise typer.Exit(ExitCode.ERROR)
    asked = [f"--method={method}", f"--format={format}", *(f"--column={each}" for each in columns or ())]
    asked += [f"--model={model}"] if model is not None else []
    asked += [f"--max-length={max_length}"] if max_length is not None else []
    asked += ["--assistant-only-loss"] if assistant_only_loss else []
    done = subprocess.run([sys.executable, "-m", "trainers", "data", *asked, "--", *files])
    raise typer.Exit(ExitCode.USAGE if done.returncode == _CANNOT else done.returncode)

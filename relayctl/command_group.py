"""The commands of relayctl: a table of all, each loaded when it is used, and answers to names that are none of them.

Loading a command loads the client and all that it prints with, so `relayctl --help` takes its list from the table.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from relayctl.commands.exits import ExitCode

#: Name of a command → where its function or Typer app is below `relayctl.commands`, and the first line of its help.
COMMANDS = {
    "submit": ("submit:submit", "Submit a run file: check it, show the plan, create the run."),
    "import": ("import_run:import_run", "Import a training that ran elsewhere as a paused run."),
    "runs": ("runs:list_runs", "List runs: those that have not ended, and the last that have."),
    "show": ("show:show_run", "Show one run: state, progress, attempts, newest checkpoint."),
    "why": ("why:explain_run", "Explain at length why a run is in its state."),
    "watch": ("watch:watch", "Watch a run until it ends; the exit code says how it ended."),
    "wait": ("watch:wait", "Wait until runs have ended; the exit code says how they ended."),
    "logs": ("logs:print_logs", "Print what the trainer printed."),
    "metrics": ("metrics:show_metrics", "Show a run's metrics: one curve each, from all attempts."),
    "samples": ("samples:show_samples", "Show what the model writes: completions, rollouts with rewards."),
    "checkpoints": ("checkpoints:checkpoints", "List a run's checkpoints; pin or unpin one."),
    "cancel": ("lifecycle:cancel", "Cancel a run; its trainer saves a checkpoint first."),
    "pause": ("lifecycle:pause", "Pause a run; its trainer saves a checkpoint first."),
    "resume": ("lifecycle:resume", "Resume a paused run from its newest checkpoint."),
    "pull": ("pull:pull", "Fetch a run's result or a checkpoint; verify every file."),
    "push": ("push:push", "Copy a checkpoint into another store, with your credentials."),
    "export": ("export:export", "Write a run's model where it can be loaded, with a card."),
    "verify": ("verify:verify", "Check the copies of a run's checkpoints."),
    "promote": ("promote:promote", "Make `main` of a Hub repository a run's model."),
    "agents": ("agents:list_agents", "List the hosts: their hardware, state and runs."),
    "config": ("config:configure", "Show which coordinator is used and why; set the default."),
    "up": ("up:up", "Run a database, a coordinator and agents here until Ctrl-C."),
    "demo": ("demo:demo", "Train a small model on two hosts, and kill one in the middle."),
    "data": ("data_check:app", "Check the rows that runs train on."),
}

#: What other tools call a command → what it is called here.
ELSEWHERE = {
    "apply": "submit",
    "create": "submit",
    "launch": "submit",
    "start": "submit",
    "train": "submit",
    "adopt": "import",
    "migrate": "import",
    "ls": "runs",
    "list": "runs",
    "jobs": "runs",
    "ps": "runs",
    "queue": "runs",
    "get": "show",
    "describe": "show",
    "inspect": "show",
    "status": "show",
    "explain": "why",
    "events": "watch",
    "attach": "watch",
    "tail": "logs -f",
    "log": "logs",
    "generations": "samples",
    "completions": "samples",
    "rollouts": "samples --kind rollout",
    "plot": "metrics --plot",
    "stop": "cancel",
    "kill": "cancel",
    "delete": "cancel",
    "rm": "cancel",
    "abort": "cancel",
    "continue": "resume",
    "hosts": "agents",
    "nodes": "agents",
    "workers": "agents",
    "download": "pull",
    "fetch": "pull",
    "upload": "push",
    "publish": "export",
    "save": "export",
    "copy": "push",
    "context": "config",
    "serve": "up",
    "server": "up",
}


class CommandGroup(TyperGroup):
    """Lists the commands of the table, loads the one that is used, and suggests one for a name that is not there."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            typer.echo(suggest_command(args[0]), err=True)
            raise typer.Exit(ExitCode.USAGE)
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """Import a command's module and build the command, or the group of commands, of this name."""
    module_name, attribute = COMMANDS[name][0].split(":")
    target = getattr(importlib.import_module(f"relayctl.commands.{module_name}"), attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False, rich_markup_mode=None)
        target.command(name)(function)
    command = get_command(target)
    command.name = name
    return command


def suggest_command(name: str) -> str:
    """Return the error for a name that is no command, with the command that was probably meant."""
    close = ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.6)), None)
    answer = f"did you mean: relayctl {close}" if close else f"known: {', '.join(COMMANDS)}"
    return f'relayctl has no command "{name}"; {answer}'

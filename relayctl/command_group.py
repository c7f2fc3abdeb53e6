"""Which command was meant: near misses, and what other tools call the same thing."""

from __future__ import annotations

import difflib
from typing import Any

import typer
from typer.core import TyperGroup

from relayctl.commands.exits import ExitCode

#: What other tools call it → what it is called here.
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


class Verbs(TyperGroup):
    """Answers an unknown verb with the one that was probably meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            typer.echo(_unknown_verb(args[0], list(self.commands)), err=True)
            raise typer.Exit(ExitCode.USAGE)
        return super().resolve_command(ctx, args)


def _unknown_verb(verb: str, known: list[str]) -> str:
    close = ELSEWHERE.get(verb) or next(iter(difflib.get_close_matches(verb, known, n=1, cutoff=0.6)), None)
    answer = f"did you mean: relayctl {close}" if close else f"known: {', '.join(known)}"
    return f'relayctl has no command "{verb}"; {answer}'

"""The options and arguments that several commands have, and the values that their texts stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from relayctl.commands.exits import UsageMistake
from relayctl.output.serialize import Output

RunName = Annotated[str, typer.Argument(help="Name of the run.", metavar="RUN", show_default=False)]
#: What `pull`, `export` and `verify` take.
RunOrCheckpoint = Annotated[
    str, typer.Argument(help="A run, or RUN@STEP, RUN@latest, RUN@best.", metavar="RUN[@STEP]", show_default=False)
]
Format = Annotated[Output, typer.Option("-o", "--output", help="Print in this format.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print names only.")]
Labels = Annotated[
    list[str] | None, typer.Option("-l", "--label", metavar="KEY=VALUE", help="List only those with this label.")
]
Reason = Annotated[str, typer.Option(help="Say why; the run's history keeps it.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the run file, e.g. options.max_steps=5."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")]


def parse_labels(texts: Sequence[str] | None) -> dict[str, str]:
    """Parse `key=value` texts."""
    labels = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageMistake(f'a label reads key=value, found "{text}"')
        labels[key] = value
    return labels


def parse_seconds(text: str | None) -> float | None:
    """Parse a duration such as `90s` or `2h`; None stays None."""
    if text is None:
        return None
    from runfile import UnitError, parse_duration  # slow to load: the run file's models come with it

    try:
        return parse_duration(text)
    except UnitError as error:
        raise UsageMistake(str(error)) from error

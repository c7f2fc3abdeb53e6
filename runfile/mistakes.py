"""Mistakes in a run file, with what a user needs to correct them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a file; lines and columns count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake: where it is, what is wrong, and a hint (empty when the problem says it all)."""

    path: KeyPath
    problem: str
    hint: str = ""
    position: Position | None = None
    override: str = ""  #: the `--set` that gave the value, as it was written

    @property
    def path_text(self) -> str:
        """The path as users write it: `data.train[0].path`."""
        return format_path(self.path)

    def with_position(self, mark: Position | None, override: str) -> "Mistake":
        return replace(self, position=None if override else mark, override=override)

    @property
    def text(self) -> str:
        """Path, problem and hint in one line, without the position in the file."""
        where = f"{self.path_text}: " if self.path else ""
        return where + self.problem + (f"; {self.hint}" if self.hint else "")

    def __str__(self) -> str:
        place = f"line {self.position.line}, column {self.position.column}: " if self.position else ""
        return (f"--set {self.override}: " if self.override else place) + self.text


class RunFileErrors(ValueError):
    """A run file has mistakes: all of them, in the order of the file."""

    def __init__(self, mistakes: Iterable[Mistake], name: str = "the run file") -> None:
        unplaced = Position(1 << 30, 0)
        self.mistakes: tuple[Mistake, ...] = tuple(sorted(mistakes, key=lambda m: _order(m.position or unplaced)))
        self.name = name
        super().__init__(self.report())

    def report(self) -> str:
        """Return a heading, and a line for each mistake."""
        count = len(self.mistakes)
        heading = f"{self.name}: {count} {'mistake' if count == 1 else 'mistakes'}"
        return "\n".join([heading, *(f"  {mistake}" for mistake in self.mistakes)])


def _order(mark: Position) -> tuple[int, int]:
    return mark.line, mark.column


def format_path(path: Sequence[str | int]) -> str:
    """Return `("data", "train", 0, "path")` as `data.train[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def describe_value(value: Any) -> str:
    """Return a value in words: `the text "three"`, `the number 3`, `a list`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return f'the text "{shorten(value)}"'
        case int() | float():
            return f"the number {value}"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


def shorten(text: str, limit: int = 60) -> str:
    """Return the text on one line, cut after `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def find_nearest(name: str, names: Iterable[str], cutoff: float = 0.65) -> str | None:
    """Return the known name nearest to `name`, or None when none is near: alike by less than `cutoff`, of 1."""
    known = {candidate.casefold().replace("-", "_"): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold().replace("-", "_"), known, n=1, cutoff=cutoff)
    return known[close[0]] if close else None


def join_alternatives(names: Iterable[str]) -> str:
    """Return names as `a, b or c`."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"

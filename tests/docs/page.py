"""Pages of the documentation, read as what a reader would type: files to save, and commands with what they print."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).resolve().parents[2] / "docs"
NOT_RUN = "<!-- not run by the test"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SAVED = re.compile(r"`([\w.-]+)`:\s*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    file: str  #: what the paragraph before it says it is to be saved as; empty otherwise
    run: bool  #: False where the page itself says that tests leave it out


@dataclass(frozen=True, slots=True)
class Command:
    """One line that a reader types, and the lines that the page shows below it."""

    line: str
    shown: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        before = text[: found.start()].rstrip().rpartition("\n\n")[2]
        saved = _SAVED.search(before)
        yield Block(found[1], found[2], saved[1] if saved else "", not before.startswith(NOT_RUN))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a `console` block."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, *shown = part.rstrip("\n").split("\n")
        while line.endswith("\\"):
            line = line[:-1] + shown.pop(0)
        yield Command(line, tuple(shown))


def execute(command: Command, folder: Path, environment: Mapping[str, str]) -> None:
    """Run one command as the page shows it, and compare what it prints: `…` stands for anything."""
    done = subprocess.run(["bash", "-c", command.line], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command.line}\n{done.stdout}\n{done.stderr}"
    assert_shown(command, done.stdout)


def assert_shown(command: Command, printed: str) -> None:
    """Each line that the page shows must be printed, in that order; a line of `…` alone stands for any lines."""
    rest, anywhere = printed.splitlines(), False
    for line in command.shown:
        if line.strip() == "…":
            anywhere = True
            continue
        at = next((at for at, found in enumerate(rest if anywhere else rest[:1]) if _matches(line, found)), None)
        assert at is not None, f"{command.line}: the page shows {line!r}, and this was printed:\n{printed}"
        rest, anywhere = rest[at + 1 :], False


def _matches(shown: str, printed: str) -> bool:
    """Whether a printed line is the one shown; `…` stands for anything or nothing, and widths do not matter."""
    parts = " ".join(shown.split()).replace(" …", "…").split("…")
    return bool(re.fullmatch(".*".join(map(re.escape, parts)), " ".join(printed.split())))

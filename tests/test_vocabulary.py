"""Words that only this project used, in what strangers read: pages, the contract, help texts, docstrings.

One thing has one term, the field's own where it has one; docs/glossary.md explains the few that are Relay's. Every
room must be free of the old words. `python -m tests.test_vocabulary [ROOM …]` lists what is left in all rooms, or in
these.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("proto/relay", "runfile", "storage", "coordinator", "agent", "trainers", "relayctl")
#: Folders with programs that are in no package.
OTHERS = ("benchmarks", "docs", "examples", "migrations")
#: An old word → what to write instead.
OLD: Mapping[str, str] = {
    r"wish(?:es|ed)?(?! list)": "desired",
    r"(?:the|a|an|each|every|older|late|lower|pushed) beats?\b|\bbeats?\b(?= (?:that|of|which|and|is|are|carr))": (
        "heartbeat reply"
    ),
    r"let go(?! of)": "scheduled for deletion, deleted",
    r"pass(?:es|ed) over|passing over": "skipped",
    r"(?:goes|gone|go|going|went) on from": "resumes from",
    r"(?:run|it|which|that) rests?\b(?! on)|\bto rest\b": "is paused",
    r"travel(?:s|led|ling)?\b": "is uploaded with the run; is sent",
    r"off the curve": "superseded",
    r"fall(?:s|en)? silent|fell silent|silence|silent holder|is silent|are silent": "no heartbeat, stops responding",
    r"bur(?:y|ies|ied)\b": "reap",
    r"settles?\b|settled\b": "drain, finish",
    r"mend(?:s|ed|ing)?\b": "repair",
    r"patience": "retry policy, backoff",
    r"sharp(?:er|en|ens|ened|ness|est)|blunt(?:er)?": "stronger, weaker",
    r"told(?! (?:from|apart))": "is notified; receives; knows",
    r"stretch(?:es)?\b": "byte range, range",
    r"seated|seats?\b": "placement",
    r"(?:for|of|by) people|people (?:can|may|type|read|write|who)|a person\b": "user, you",
}
_OLD = {re.compile(rf"\b(?:{word})", re.IGNORECASE): better for word, better in OLD.items()}
#: What may stay: (a part of the room's name, a text that stands around the word) → why.
ALLOWED: Mapping[tuple[str, str], str] = {
    ("CHANGELOG.md", "wish_version"): "it names what was renamed",
    ("CHANGELOG.md", "WishedLease"): "it names what was renamed",
    ("CHANGELOG.md", "WISHED"): "it names what was renamed",
    ("trainers", "Silence what the libraries report"): "it is said of log lines",
    ("coordinator/store", "column `wish_version`"): "columns keep their names: renaming one changes behaviour",
}


@dataclass(frozen=True, slots=True)
class Text:
    """Something that a stranger reads."""

    where: str
    words: str


def rooms() -> Mapping[str, list[Path]]:
    """Every page, and every package with its sub-packages, by name."""
    found = {page.relative_to(ROOT).as_posix(): [page] for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
    found["proto"] = sorted(ROOT.glob("proto/relay/v1/*.proto"))
    for package in (
        "proto/relay",
        "runfile",
        "storage",
        "coordinator",
        "agent",
        "trainers",
        "relayctl",
        *OTHERS,
        "tests",
    ):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_pb2" not in path.name:
                found.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path)
    return found


def texts(path: Path) -> Iterator[Text]:
    """What is written for readers in a file: all of a page, comments of the contract, docstrings and help texts."""
    name = path.relative_to(ROOT).as_posix()
    lines = path.read_text().splitlines()
    if path.suffix == ".md":
        yield from (Text(f"{name}:{at}", line) for at, line in enumerate(lines, 1))
    elif path.suffix == ".proto":
        yield from (Text(f"{name}:{at}", line) for at, line in enumerate(lines, 1) if "//" in line)
    else:
        yield from _texts_of_code(name, ast.parse(path.read_text()), lines)


def _texts_of_code(name: str, tree: ast.Module, lines: list[str]) -> Iterator[Text]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield Text(f"{name}:{getattr(node, 'lineno', 1)}", " ".join(docstring.split()))
        elif isinstance(node, ast.keyword) and node.arg == "help":
            yield Text(f"{name}:{node.value.lineno}", ast.unparse(node.value))
    for at, line in enumerate(lines, 1):
        if "#: " in line:
            yield Text(f"{name}:{at}", line.partition("#: ")[2])


def old_words(room: str, paths: list[Path]) -> Iterator[str]:
    """Each old word in a room: where, in which words, and what to write instead."""
    for path in paths:
        for text in texts(path):
            for pattern, better in _OLD.items():
                for found in pattern.finditer(text.words):
                    around = text.words[max(0, found.start() - 40) : found.end() + 40]
                    if not any(part in room and kept in around for part, kept in ALLOWED):
                        yield f"{text.where}: …{around}… ({better})"


@pytest.mark.parametrize("room", rooms())
def test_a_room_is_free_of_old_words(room: str) -> None:
    assert not list(old_words(room, rooms()[room]))


if __name__ == "__main__":
    total = 0
    for name, paths in rooms().items():
        if not sys.argv[1:] or any(name.startswith(asked) for asked in sys.argv[1:]):
            found = list(old_words(name, paths))
            total += len(found)
            print(f"{name}: {len(found)}", *(f"  {each}" for each in found if sys.argv[1:]), sep="\n")
    print(total)

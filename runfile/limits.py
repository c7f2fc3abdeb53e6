"""Limits on the values of any run file, beyond which it could not be stored, sent or digested.

Text that is not Unicode or has NUL bytes (Postgres refuses them), numbers that a double cannot carry (protobuf's Struct
has no others), and endless nesting. They are checked before anything else, since the other checks recurse.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from runfile.mistakes import KeyPath, Mistake

MAX_DEPTH = 24
LARGEST = 2**53  #: the largest whole number up to which all are exact as doubles


def find_unstorable(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a mistake for each value beyond the limits."""
    stack: list[tuple[KeyPath, Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        if problem := _problem(value):
            yield Mistake(path, problem)
        elif len(path) > MAX_DEPTH:
            yield Mistake(path[:3], "is nested too deeply")
            return
        elif isinstance(value, Mapping):
            stack += [((*path, str(key)), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            stack += [((*path, index), item) for index, item in enumerate(value)]


def _problem(value: Any) -> str:
    match value:
        case Mapping() if any(not isinstance(key, str) or _text_problem(key) for key in value):
            return "keys are plain text"
        case str():
            return _text_problem(value)
        case int() if abs(value) > LARGEST:
            return "is too large: whole numbers go up to 2^53"
    return ""


def _text_problem(text: str) -> str:
    if "\0" in text:
        return "holds a NUL character"
    return "" if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text) else "holds half a character"

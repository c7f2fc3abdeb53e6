"""Translates the errors of pydantic into mistakes that a user understands."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from runfile.mistakes import KeyPath, Mistake, describe_value, find_nearest, join_alternatives
from runfile.suggestions import list_keys, suggest_key

_NEEDED = {
    "string_type": "text is needed",
    "bool_type": "true or false is needed",
    "model_type": "a mapping (key: value) is needed",
    "dict_type": "a mapping (key: value) is needed",
    "tuple_type": "a list is needed",
    "list_type": "a list is needed",
}
_NOT_KEYS = ("~split", "~sources", "[key]")  #: parts of pydantic's paths that are not keys
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def convert_errors(
    errors: list[ErrorDetails], data: Mapping[str, Any], options: Mapping[str, Any] | None
) -> Iterator[tuple[Mistake, bool]]:
    """Yield each error as a mistake, and whether it concerns the key (else its value)."""
    for error in errors:
        path = _path(error["loc"], data)
        kind = error["type"]
        if kind == "extra_forbidden":
            yield Mistake(path, "unknown key", suggest_key(path, options)), True
        elif kind == "missing":
            yield Mistake(path, "is missing", _missing(path)), True
        else:
            yield Mistake(path, *_problem(kind, error, path)), False


def _path(location: tuple[int | str, ...], data: Any) -> KeyPath:
    """Return the path as the file has it, without names of variants and without the index of what is no list."""
    path: list[str | int] = []
    for part in location:
        if part in _NOT_KEYS and not (isinstance(data, Mapping) and part in data):
            continue
        if isinstance(part, int) and not isinstance(data, list | tuple):
            continue
        path.append(part)
        data = _inside(data, part)
    if path and path[-1] == "path" and data is None and len(path) < len(location):
        path.pop()  # the text that stands for a source is itself the place
    return tuple(path)


def _inside(data: Any, part: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(part)
    if isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def _missing(path: KeyPath) -> str:
    return "one of the methods, for instance method: sft" if path == ("method",) else ""


def _problem(kind: str, error: ErrorDetails, path: KeyPath) -> tuple[str, str]:
    value, context = error["input"], error.get("ctx", {})
    if kind in _NEEDED:
        return f"{_NEEDED[kind]}, found {describe_value(value)}", _shape(kind, value, path)
    if kind == "literal_error":
        return _choice(value, error)
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{words} {context[bound]} is needed, found {describe_value(value)}", ""
    if kind in ("string_too_short", "too_short"):
        return "must not be empty", ""
    if kind == "string_pattern_mismatch":
        return _pattern(value, path)
    return str(context.get("error", error["msg"])), ""


def _shape(kind: str, value: Any, path: KeyPath) -> str:
    match kind, value:
        case "string_type", bool() | int() | float():
            return f'put quotes around it: "{str(value).lower() if isinstance(value, bool) else value}"'
        case "tuple_type" | "list_type", str() if path == ("command",):
            return 'a command is a list of arguments: ["bash", "-c", "…"] where a shell is wanted'
        case "tuple_type" | "list_type", str():
            return f"write [{value}]"
        case "model_type", str() if path == ("model",):
            return f"write model: {{name_or_path: {value}}}"
        case "model_type", _:
            return f"known here: {', '.join(list_keys(path))}" if list_keys(path) else ""
    return ""


def _choice(value: Any, error: ErrorDetails) -> tuple[str, str]:
    allowed = [
        part.strip().strip("'")
        for part in str(error.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
    ]
    close = find_nearest(value, allowed) if isinstance(value, str) else None
    return (
        f"{join_alternatives(allowed)} is needed, found {describe_value(value)}",
        f"did you mean {close}?" if close else "",
    )


def _pattern(value: Any, path: KeyPath) -> tuple[str, str]:
    if path[-1] == "store":
        return (
            f"{describe_value(value)} is not a store",
            "write relay://, file:///a/folder, s3://bucket/prefix, gs://, az:// or hf://",
        )
    if path[-1] == "repo":
        return f"{describe_value(value)} is no repository on the Hub", "write owner/name"
    return f"{describe_value(value)} does not name a function of a file", "write file.py:function"

"""The options of a method, checked against its JSON Schema.

`relay/v1/methods/<method>.json` is generated from the library's own config classes; its `x-relay-owned` maps the
options that Relay sets itself to what to write instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from runfile.mistakes import KeyPath, Mistake, describe_value, find_nearest, join_alternatives
from runfile.models import METHODS, RunFile
from runfile.suggestions import ALIASES

if TYPE_CHECKING:
    import jsonschema

_SCHEMAS = resources.files("relay.v1") / "methods"  #: published beside the contract
_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping (key: value)",
    "null": "null",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


@cache
def load_schema(method: str) -> dict[str, Any] | None:
    """Return the method's schema, or None where this release has none."""
    path = _SCHEMAS / f"{method}.json"
    if method not in METHODS or not path.is_file():
        return None
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def preload() -> None:
    """Load what the first run file would load, for a process that must not pause then. Blocking."""
    import jsonschema  # noqa: F401

    list_supported_methods()
    RunFile.model_rebuild()


@cache
def list_supported_methods() -> tuple[str, ...]:
    """Return the methods that this release can run."""
    return tuple(method for method in METHODS if load_schema(method) is not None)


def list_options(method: Any) -> Mapping[str, Any]:
    """Return the options of a method by name; none for an unknown method."""
    found_schema = load_schema(method) if isinstance(method, str) else None
    properties: Mapping[str, Any] = (found_schema or {}).get("properties", {})
    return properties


def check_method(method: Any) -> Mistake | None:
    """Return what is wrong with the method's name, or None."""
    if not isinstance(method, str) or method in list_supported_methods():
        return None
    if method in METHODS:
        return Mistake(
            ("method",),
            f"{method} is not supported yet",
            f"this release has {join_alternatives(list_supported_methods())}",
        )
    close = find_nearest(method, METHODS)
    return Mistake(
        ("method",),
        f'there is no method "{method}"',
        f"did you mean {close}?" if close else f"known: {', '.join(METHODS)}",
    )


def find_option_mistakes(method: str, run: Mapping[str, Any]) -> Iterator[tuple[Mistake, bool]]:
    """Yield each mistake in the library's own sections, and whether it concerns the key (else its value)."""
    rules = load_schema(method)
    if rules is None:
        return
    for name, section_rules in {"options": rules, **rules.get("x-relay-sections", {})}.items():
        given = run.get(name)
        if isinstance(given, Mapping):
            yield from _check_section(method, section_rules, given, (name,))


def _check_section(
    method: str, rules: Mapping[str, Any], options: Mapping[str, Any], section: KeyPath
) -> Iterator[tuple[Mistake, bool]]:
    elsewhere = {name: f"write model.{name}" for name, rule in rules.get("properties", {}).items() if rule is False}
    owned: Mapping[str, str] = rules.get("x-relay-owned", {}) | elsewhere
    yield from (
        (Mistake((*section, name), "does not go here" if name in elsewhere else "is set by Relay", owned[name]), True)
        for name in options
        if name in owned
    )
    checked = {name: value for name, value in options.items() if name not in owned}
    for error in _errors(rules, checked):
        path = (*section, *error.absolute_path)
        if error.validator == "additionalProperties":
            unknown = [name for name in error.instance if name not in error.schema.get("properties", {})]
            yield from ((_unknown(method, (*path, name), error.schema), True) for name in unknown)
        elif error.validator == "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            yield from ((Mistake((*path, name), "is missing"), True) for name in missing)
        else:
            inner = _innermost(error)
            yield Mistake((*section, *inner.absolute_path), *_problem(inner)), False


def _innermost(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Return the error inside the shape that a value has, of the several that it may have."""
    inner = [each for each in error.context or () if each.path]
    return _innermost(inner[0]) if inner else error


def _errors(rules: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[Any]:
    import jsonschema  # a quarter of what this package takes to import; most processes check no options

    return jsonschema.Draft202012Validator(rules).iter_errors(options)


def _unknown(method: str, path: KeyPath, rules: Mapping[str, Any]) -> Mistake:
    name, known = str(path[-1]), rules.get("properties", {})
    if not known and len(path) == 2:
        hint = "a command takes its settings from command and env" if method == "command" else ""
        return Mistake(path, f"{method} has no options", hint)
    alias = ALIASES.get(name.casefold().replace("-", "_"), "")
    section, _, ours = alias.rpartition(".")
    if section == "options" and ours in known:
        return Mistake(path, "unknown option", f"it is called {ours} here")
    if close := find_nearest(name, known):
        return Mistake(path, "unknown option", f"did you mean {close}?")
    if alias == path[0]:
        return Mistake(path, "unknown option", f"there is {join_alternatives(list(known))}")
    return Mistake(
        path,
        "unknown option",
        (alias if " " in alias else f"write {alias}") if alias else f"{method} has no such option",
    )


def _problem(error: jsonschema.ValidationError) -> tuple[str, str]:
    rule: Any = error.validator_value
    if error.validator == "enum":
        allowed = [str(value) for value in rule]
        close = find_nearest(error.instance, allowed) if isinstance(error.instance, str) else None
        return (
            f"{join_alternatives(allowed)} is needed, found {describe_value(error.instance)}",
            f"did you mean {close}?" if close else "",
        )
    if error.validator in _BOUNDS:
        return f"{_BOUNDS[str(error.validator)]} {rule} is needed, found {describe_value(error.instance)}", ""
    accepted = _accepted_types(error.schema) if isinstance(error.schema, Mapping) else []
    if not accepted:
        return error.message, ""
    return f"{join_alternatives(accepted)} is needed, found {describe_value(error.instance)}", ""


def _accepted_types(rules: Mapping[str, Any]) -> list[str]:
    """Return the types that a schema accepts, in words."""
    if "type" in rules:
        types = [rules["type"]] if isinstance(rules["type"], str) else rules["type"]
        return [_TYPES.get(kind, kind) for kind in types]
    if "enum" in rules:
        return [str(value) for value in rules["enum"]]
    variants = [
        word for key in ("anyOf", "oneOf") for variant in rules.get(key, ()) for word in _accepted_types(variant)
    ]
    return list(dict.fromkeys(variants))

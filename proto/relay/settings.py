"""How programs are configured: fields of a frozen dataclass, read once from flags, the environment and secret files.

A field made with `setting` has a flag, and possibly a variable of the environment that stands in for it. The flag wins
over the variable, and the variable over the default; an empty variable counts as unset. A field that is made with
`from_environment` depends on the environment alone: a secret never stands on a command line, where every user of the
host can read it. Whatever is wrong is one `SettingsError` that names the flag or variable; programs print it as one
line and end with `MISCONFIGURED`, which tells a supervisor that starting them again cannot help.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
Environment = Mapping[str, str]

MISCONFIGURED = 78  #: sysexits' EX_CONFIG
SECRET = "RELAY_SHARED_SECRET"
SECRET_FILE = "RELAY_SHARED_SECRET_FILE"


class SettingsError(ValueError):
    """A setting is missing or wrong; the message names it and says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spec:
    """How one field is read: from its flag, from a variable, or from the environment as a whole."""

    flag: str = ""
    variable: str = ""
    parse: Callable[[Any], Any] = str
    compute: Callable[[Environment], Any] | None = None  #: the value where neither flag nor variable gives one
    metavar: str | None = None
    repeated: bool = False  #: the flag may be given several times; `parse` takes the list
    help: str = ""


def setting(
    flag: str,
    *,
    help: str,
    parse: Callable[[Any], Any] = str,
    default: Any = MISSING,
    compute: Callable[[Environment], Any] | None = None,
    variable: str = "",
    metavar: str | None = None,
    repeated: bool = False,
) -> Any:
    """Make a field with a flag. `default` is None or text for `parse`; `compute` works from the environment instead."""
    spec = _Spec(
        flag=flag,
        variable=variable,
        parse=parse,
        compute=compute,
        metavar=metavar,
        repeated=repeated,
        help=_explain(help, variable, default),
    )
    if default is MISSING:
        return field(metadata={"setting": spec})
    return field(default_factory=lambda: None if default is None else parse(default), metadata={"setting": spec})


def from_environment(compute: Callable[[Environment], Any], *, shown: bool = True) -> Any:
    """Make a field without a flag, None by default; `shown` is False for what no repr may contain."""
    return field(default=None, repr=shown, metadata={"setting": _Spec(compute=compute)})


def read_secret(environment: Environment) -> str | None:
    """Return the shared secret from the file that RELAY_SHARED_SECRET_FILE names, or from RELAY_SHARED_SECRET."""
    if not (path := environment.get(SECRET_FILE)):
        return environment.get(SECRET) or None
    try:
        secret = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it must be text"
        raise SettingsError(f"${SECRET_FILE} {path}: {reason}") from error
    if not secret:
        raise SettingsError(f"${SECRET_FILE} {path}: it is empty")
    return secret


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are one line: it raises SettingsError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError."""
        raise SettingsError(f"{message} (see {self.prog} -h)")


def make_parser(name: str, description: str) -> Parser:
    """Make a program's command line, with `-h` and `--version`."""
    parser = Parser(name, description=description)
    parser.add_argument("--version", action=_Version, nargs=0, help="Show the version and exit.")
    return parser


def add_flags(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Add the flags of a dataclass to a command line."""
    for each in fields(kind):
        spec: _Spec | None = each.metadata.get("setting")
        if spec is not None and spec.flag:
            action = "append" if spec.repeated else "store"
            parser.add_argument(spec.flag, dest=each.name, action=action, metavar=spec.metavar, help=spec.help)


def read_settings(kind: type[T], given: argparse.Namespace, environment: Environment) -> T:
    """Return the dataclass that flags, environment and defaults come to; SettingsError when something is wrong."""
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        spec: _Spec | None = each.metadata.get("setting")
        if spec is None:
            continue
        if (text := getattr(given, each.name, None)) is not None:
            values[each.name] = _parse(spec, spec.flag, text)
        elif text := environment.get(spec.variable):
            values[each.name] = _parse(spec, f"${spec.variable}", text)
        elif spec.compute is not None:
            values[each.name] = spec.compute(environment)
    return kind(**values)


def version() -> str:
    """Return the version of the installed distribution; empty in a tree that is not installed."""
    import importlib.metadata  # costs more to import than the rest of this module

    try:
        return importlib.metadata.version("relay-training")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _parse(spec: _Spec, name: str, text: str | Sequence[str]) -> Any:
    try:
        return spec.parse(text)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error  # without the text, which may hold a password


def _explain(help: str, variable: str, default: Any) -> str:
    notes = [f"${variable}"] if variable else []
    notes += [f"default: {default}"] if default is not MISSING and default not in (None, "") else []
    return f"{help} [{'; '.join(notes)}]" if notes else help


class _Version(argparse.Action):
    """Prints the program's name and version, and ends the process."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{parser.prog} {version()}".rstrip())
        parser.exit()

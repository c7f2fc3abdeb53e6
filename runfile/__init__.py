"""The run file: what a person writes and submits, read, checked and resolved.

`load` reads a file of YAML, JSON or TOML, `parse` takes plain values (from JSON or protobuf's Struct). Both give a
frozen `RunFile` with its defaults filled in, or raise `RunFileErrors` with every mistake at once: its path, its line
where there is one, what is wrong and what would be right. `find_inputs` says what must leave the submitter's disk.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from runfile import inputs as _inputs
from runfile import limits, options, presets, reading, rules, validation_errors
from runfile.inputs import INIT_BASE, INIT_FROM, ROWS, Travel, rows_in
from runfile.mistakes import Mark, Mistake, RunFileErrors
from runfile.models import (
    METHODS,
    Adopt,
    AdoptCheckpoints,
    Checkpoint,
    Complete,
    Data,
    Hub,
    Keep,
    Lifecycle,
    Model,
    Nodes,
    Resources,
    Reward,
    RunFile,
    Samples,
    Source,
    Split,
)
from runfile.options import preload
from runfile.reading import Document
from runfile.units import Every, UnitError, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "INIT_BASE",
    "INIT_FROM",
    "METHODS",
    "ROWS",
    "Adopt",
    "AdoptCheckpoints",
    "Checkpoint",
    "Complete",
    "Data",
    "Document",
    "Every",
    "Hub",
    "Keep",
    "Lifecycle",
    "Mark",
    "Mistake",
    "Model",
    "Nodes",
    "Resources",
    "Reward",
    "RunFile",
    "RunFileErrors",
    "Samples",
    "Source",
    "Split",
    "Travel",
    "Travelling",
    "UnitError",
    "find_inputs",
    "format_duration",
    "format_size",
    "load",
    "parse",
    "parse_duration",
    "parse_size",
    "preload",
    "rows_in",
]

_KEPT_EMPTY = {"options", "model_init", "lora", "quantization", "launch", "trackers", "config"}


def load(path: FilePath | str, sets: Sequence[str] = ()) -> RunFile:
    """The run that the file describes, with `sets` (`options.learning_rate=1e-4`) put over it.

    Local files that it names and that are not there are mistakes too. Raises `RunFileErrors`.
    """
    file = FilePath(path)
    document = reading.override(reading.read(file), sets)
    return _checked(document, base=file.parent)


def parse(data: Mapping[str, Any], *, supported: bool = True) -> RunFile:
    """The run that plain values describe; 4.0 is 4 where a whole number is needed, a bare number of time is seconds.

    `supported=False` accepts all that the format knows, also what this release refuses to run. Raises `RunFileErrors`.
    """
    return _checked(Document(dict(data)), supported=supported)


@dataclass(frozen=True, slots=True)
class Travelling:
    """What leaves the submitter's disk, and the run file as the host will read it."""

    files: tuple[Travel, ...]
    runfile: RunFile


def find_inputs(runfile: RunFile, base: FilePath | str) -> Travelling:
    """What must travel with a run whose file lies in the folder `base`; `RunFileErrors` for what is not there."""
    data, files, mistakes = _inputs.gather(runfile.to_dict(), FilePath(base))
    if mistakes:
        raise RunFileErrors(mistakes)
    return Travelling(tuple(files), parse(data, supported=False))


def _checked(document: Document, *, base: FilePath | None = None, supported: bool = True) -> RunFile:
    if found_unsound := list(limits.unsound(document.data)):
        raise RunFileErrors((document.locate(mistake) for mistake in found_unsound), document.name)
    data: dict[str, Any] = presets.applied(rules.by_mode(_without_empty(document.data)))
    run, found = _validated(data, units=base is not None)
    found += _around(data, run, supported)
    if base is not None:
        found += [(mistake, False) for mistake in _inputs.missing(data, base)]
    if run is None or found:
        raise RunFileErrors(_once(document.locate(mistake, key=key) for mistake, key in found), document.name)
    return run


def _validated(data: Mapping[str, Any], *, units: bool) -> tuple[RunFile | None, list[tuple[Mistake, bool]]]:
    try:
        return RunFile.model_validate(data, context={"units": units}), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
        return None, list(validation_errors.mistakes(errors, data, options.names(data.get("method"))))


def _around(data: Mapping[str, Any], run: RunFile | None, supported: bool) -> list[tuple[Mistake, bool]]:
    """The mistakes that the types alone do not show."""
    method = data.get("method")
    found = [(mistake, True) for mistake in (*rules.between_sections(data), *presets.mistakes(data))]
    if wrong := options.method_mistake(method) if supported else None:
        found.append((wrong, False))
    if isinstance(method, str):
        found += options.check(method, run.to_dict() if run else data)
    if run is not None and supported:
        found += [(mistake, True) for mistake in rules.not_supported(run)]
    return found


def _once(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """The first mistake of each place: a second one there only repeats it."""
    first: dict[tuple[str | int, ...], Mistake] = {}
    for mistake in mistakes:
        first.setdefault(mistake.path, mistake)
    return list(first.values())


def _without_empty(data: Any) -> Any:
    """A key with nothing behind it counts as left out; in the libraries' own mappings null is a value."""
    if isinstance(data, Mapping):
        kept = {key: value for key, value in data.items() if value is not None}
        return {key: value if key in _KEPT_EMPTY else _without_empty(value) for key, value in kept.items()}
    return [_without_empty(item) for item in data] if isinstance(data, list | tuple) else data

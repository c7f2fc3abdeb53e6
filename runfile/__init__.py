"""The run file: what a person writes and submits, read, checked and resolved.

`load` reads a file of YAML, JSON or TOML, `parse` takes plain values (from JSON or protobuf's Struct). Both give a
frozen `RunFile` with its defaults filled in, or raise `RunFileErrors` with every mistake at once: its path, its line
where there is one, what is wrong and what would be right. `find_inputs` says what must leave the submitter's disk.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runfile import inputs as _inputs
from runfile import limits, options, presets, reading, rules, validation_errors
from runfile.inputs import INIT_BASE, INIT_FROM, ROW_SUFFIXES, InputFile, list_row_files
from runfile.mistakes import Mistake, Position, RunFileErrors
from runfile.models import (
    METHODS,
    AdoptCheckpoints,
    AdoptSection,
    CheckpointSection,
    Complete,
    DataSection,
    DataSource,
    HubSection,
    KeepSection,
    LifecycleSection,
    ModelSection,
    Nodes,
    ResourcesSection,
    Reward,
    RunFile,
    SamplesSection,
    Split,
)
from runfile.options import preload_schemas
from runfile.reading import Document
from runfile.units import Every, UnitError, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "INIT_BASE",
    "INIT_FROM",
    "METHODS",
    "ROW_SUFFIXES",
    "AdoptCheckpoints",
    "AdoptSection",
    "CheckpointSection",
    "Complete",
    "DataSection",
    "DataSource",
    "Document",
    "Every",
    "HubSection",
    "InputFile",
    "KeepSection",
    "LifecycleSection",
    "Mistake",
    "ModelSection",
    "Nodes",
    "Position",
    "ResourcesSection",
    "Reward",
    "RunFile",
    "RunFileErrors",
    "RunInputs",
    "SamplesSection",
    "Split",
    "UnitError",
    "find_inputs",
    "format_duration",
    "format_size",
    "list_row_files",
    "load_run_file",
    "parse_duration",
    "parse_run_file",
    "parse_size",
    "preload_schemas",
]

_KEPT_EMPTY = {"options", "model_init", "lora", "quantization", "launch", "trackers", "config"}


def load_run_file(path: Path | str, sets: Sequence[str] = ()) -> RunFile:
    """The run that the file describes, with `sets` (`options.learning_rate=1e-4`) put over it.

    Local files that it names and that are not there are mistakes too. Raises `RunFileErrors`.
    """
    file = Path(path)
    document = reading.apply_overrides(reading.read_document(file), sets)
    return _checked(document, base=file.parent)


def parse_run_file(data: Mapping[str, Any], *, supported: bool = True) -> RunFile:
    """The run that plain values describe; 4.0 is 4 where a whole number is needed, a bare number of time is seconds.

    `supported=False` accepts all that the format knows, also what this release refuses to run. Raises `RunFileErrors`.
    """
    return _checked(Document(dict(data)), supported=supported)


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What leaves the submitter's disk, and the run file as the host will read it."""

    files: tuple[InputFile, ...]
    runfile: RunFile


def find_inputs(runfile: RunFile, base: Path | str) -> RunInputs:
    """What must travel with a run whose file lies in the folder `base`; `RunFileErrors` for what is not there."""
    data, files, mistakes = _inputs.gather_inputs(runfile.to_dict(), Path(base))
    if mistakes:
        raise RunFileErrors(mistakes)
    return RunInputs(tuple(files), parse_run_file(data, supported=False))


def _checked(document: Document, *, base: Path | None = None, supported: bool = True) -> RunFile:
    if found_unsound := list(limits.find_unstorable(document.data)):
        raise RunFileErrors((document.locate(mistake) for mistake in found_unsound), document.name)
    data: dict[str, Any] = presets.apply_presets(rules.translate_mode(_without_empty(document.data)))
    run, found = _validated(data, units=base is not None)
    found += _around(data, run, supported)
    if base is not None:
        found += [(mistake, False) for mistake in _inputs.find_missing(data, base)]
    if run is None or found:
        raise RunFileErrors(_once(document.locate(mistake, key=key) for mistake, key in found), document.name)
    return run


def _validated(data: Mapping[str, Any], *, units: bool) -> tuple[RunFile | None, list[tuple[Mistake, bool]]]:
    try:
        return RunFile.model_validate(data, context={"units": units}), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
        return None, list(validation_errors.convert_errors(errors, data, options.list_options(data.get("method"))))


def _around(data: Mapping[str, Any], run: RunFile | None, supported: bool) -> list[tuple[Mistake, bool]]:
    """The mistakes that the types alone do not show."""
    method = data.get("method")
    found = [(mistake, True) for mistake in (*rules.find_conflicts(data), *presets.find_preset_mistakes(data))]
    if wrong := options.check_method(method) if supported else None:
        found.append((wrong, False))
    if isinstance(method, str):
        found += options.find_option_mistakes(method, run.to_dict() if run else data)
    if run is not None and supported:
        found += [(mistake, True) for mistake in rules.find_unsupported(run)]
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

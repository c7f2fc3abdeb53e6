"""The run file: what a user writes and submits, read, checked and resolved.

`load_run_file` reads a file of YAML, JSON or TOML; `parse_run_file` takes plain values (from JSON or protobuf's
Struct). Both return a frozen `RunFile` with its defaults filled in, or raise `RunFileErrors` with every mistake at
once: its path, its line where there is one, what is wrong and a hint. `find_inputs` finds the files that must be
uploaded with the run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runfile import inputs as _inputs
from runfile import options, presets, reading, rules, validation_errors
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
from runfile.options import preload
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
    "preload",
]

_KEPT_EMPTY = {"options", "model_init", "lora", "quantization", "launch", "trackers", "config"}


def load_run_file(path: Path | str, sets: Sequence[str] = ()) -> RunFile:
    """Return the run that a file describes, with `sets` (`options.learning_rate=1e-4`) applied.

    A local file that it names and that is missing is a mistake too. Raises RunFileErrors.
    """
    file = Path(path)
    document = reading.apply_overrides(reading.read_document(file), sets)
    return _check_document(document, base=file.parent)


def parse_run_file(data: Mapping[str, Any], *, supported: bool = True) -> RunFile:
    """Return the run that plain values describe. Raises RunFileErrors.

    4.0 is 4 where a whole number is needed, and a duration without a unit is in seconds. `supported=False` accepts all
    keys of the format, also those that this release refuses to run.
    """
    return _check_document(Document(dict(data)), supported=supported)


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The files that are uploaded with a run, and the run file as the host reads it."""

    files: tuple[InputFile, ...]
    runfile: RunFile


def find_inputs(runfile: RunFile, base: Path | str) -> RunInputs:
    """Find the inputs of a run whose file is in the folder `base`. Raises RunFileErrors when one is missing."""
    data, files, mistakes = _inputs.gather_inputs(runfile.to_dict(), Path(base))
    if mistakes:
        raise RunFileErrors(mistakes)
    return RunInputs(tuple(files), parse_run_file(data, supported=False))


def _check_document(document: Document, *, base: Path | None = None, supported: bool = True) -> RunFile:
    if unstorable := list(rules.find_unstorable(document.data)):
        raise RunFileErrors((document.locate(mistake) for mistake in unstorable), document.name)
    data: dict[str, Any] = presets.apply_presets(rules.translate_mode(_without_empty(document.data)))
    run, found = _validate_types(data, units=base is not None)
    found += _find_other_mistakes(data, run, supported)
    if base is not None:
        found += [(mistake, False) for mistake in _inputs.find_missing(data, base)]
    if run is None or found:
        raise RunFileErrors(_drop_repeated(document.locate(mistake, key=key) for mistake, key in found), document.name)
    return run


def _validate_types(data: Mapping[str, Any], *, units: bool) -> tuple[RunFile | None, list[tuple[Mistake, bool]]]:
    try:
        return RunFile.model_validate(data, context={"units": units}), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
        return None, list(validation_errors.convert_errors(errors, data, options.list_options(data.get("method"))))


def _find_other_mistakes(data: Mapping[str, Any], run: RunFile | None, supported: bool) -> list[tuple[Mistake, bool]]:
    """Return the mistakes that the types alone do not show, and whether each concerns the key (else its value)."""
    method = data.get("method")
    found = [(mistake, True) for mistake in (*rules.find_conflicts(data), *presets.find_preset_mistakes(data))]
    if wrong := options.check_method(method) if supported else None:
        found.append((wrong, False))
    if isinstance(method, str):
        found += options.find_option_mistakes(method, run.to_dict() if run else data)
    if run is not None and supported:
        found += [(mistake, True) for mistake in rules.find_unsupported(run)]
    return found


def _drop_repeated(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Return the first mistake of each path, since a second one only repeats it."""
    first: dict[tuple[str | int, ...], Mistake] = {}
    for mistake in mistakes:
        first.setdefault(mistake.path, mistake)
    return list(first.values())


def _without_empty(data: Any) -> Any:
    """Return data without keys that have no value, which count as left out but in the libraries' own sections."""
    if isinstance(data, Mapping):
        kept = {key: value for key, value in data.items() if value is not None}
        return {key: value if key in _KEPT_EMPTY else _without_empty(value) for key, value in kept.items()}
    return [_without_empty(item) for item in data] if isinstance(data, list | tuple) else data

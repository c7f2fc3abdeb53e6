"""The types of a run file's values, and the errors for values of another type."""

import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, Strict, ValidationInfo

from runfile.mistakes import describe_value
from runfile.units import GIB, Every, format_duration, format_size, parse_duration, parse_size

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
VARIABLE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_whole(value: Any) -> int:
    """Return an int, also where JSON or a Struct has 4 as 4.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a whole number is needed, found {describe_value(value)}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a number is needed, found {describe_value(value)}")
    if not math.isfinite(value):
        raise ValueError("a finite number is needed")
    return float(value)


def _gib(value: Any) -> float:
    return parse_size(value) / GIB if isinstance(value, str) else _number(value)


def _size(value: Any) -> int:
    size = (
        parse_size(value) if isinstance(value, str) else parse_size(f"{value}")
    )  # raises an error that says that the unit is missing
    if size <= 0:
        raise ValueError("a size must be more than zero")
    return size


def _units_needed(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("units"))


def _duration(value: Any, info: ValidationInfo) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    number = _number(value)
    if _units_needed(info):
        return parse_duration(f"{value}")  # raises an error that says that the unit is missing
    if number <= 0:
        raise ValueError("a duration must be more than zero and finite")
    return number


def _every(value: Any, info: ValidationInfo) -> Every:
    if isinstance(value, Every):
        return value
    if isinstance(value, str):
        return Every.parse(value)
    number = _number(value)
    return Every.parse(f"{value}") if _units_needed(info) else Every(seconds=number)


def _stall_after(value: Any, info: ValidationInfo) -> float | Literal["auto"]:
    return "auto" if value == "auto" else _duration(value, info)


def _stall_after_out(value: float | Literal["auto"]) -> str:
    return value if isinstance(value, str) else format_duration(value)


def list_sources(value: Any) -> Any:
    """Return a list of sources: a single one is a list of one, and a text is a path."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


def _free(value: Any) -> Any:
    """Return a free mapping in canonical form: 4.0 becomes 4, as JSON and a Struct have it; infinity is an error."""
    if not isinstance(value, Mapping):
        raise ValueError(f"a mapping (key: value) is needed, found {describe_value(value)}")
    return {str(key): _plain(item) for key, item in value.items()}


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return _free(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case float():
            return parse_whole(value) if _number(value).is_integer() and abs(value) < 2**53 else value
        case None | bool() | int() | str():
            return value
    raise ValueError(f"{describe_value(value)} cannot stand here")


def _variable(name: str) -> str:
    if name.upper().startswith("RELAY_"):
        raise ValueError("is refused: names beginning with RELAY_ belong to Relay")
    if not VARIABLE_PATTERN.fullmatch(name):
        raise ValueError(f'"{name}" is not a name for an environment variable')
    return name


def _variable_value(value: Any) -> str:
    if not isinstance(value, str):
        text = str(value).lower() if isinstance(value, bool) else value
        quoted = f'; put quotes around it: "{text}"' if isinstance(value, bool | int | float) else ""
        raise ValueError(f"text is needed, found {describe_value(value)}{quoted}")
    if "\0" in value:
        raise ValueError("holds a NUL byte")
    return value


def _name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        better = re.sub(r"[^a-z0-9._-]+", "-", value.lower()).strip("-._")[:128]
        hint = f', for instance "{better}"' if better else ""
        raise ValueError(f"a name must have small letters, digits, '.', '_' and '-' only, at most 128{hint}")
    return value


def _secret(value: str) -> str:
    if "=" in value:
        raise ValueError("a secret is named here, its value never is: write the name alone")
    if not VARIABLE_PATTERN.fullmatch(value):
        raise ValueError(f'"{value}" is not a name for an environment variable')
    return value


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f'"{value}" leaves the working folder: give a path inside it')
    return value


Text = Annotated[str, Strict(), Field(min_length=1)]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, BeforeValidator(parse_whole)]
Number = Annotated[float, BeforeValidator(_number)]
Gib = Annotated[float, BeforeValidator(_gib), Field(gt=0)]
Size = Annotated[int, PlainValidator(_size), PlainSerializer(format_size)]
Duration = Annotated[float, PlainValidator(_duration), PlainSerializer(format_duration)]
Interval = Annotated[Every, PlainValidator(_every), PlainSerializer(str)]
Free = Annotated[dict[str, Any], BeforeValidator(_free)]
Inside = Annotated[Text, BeforeValidator(lambda value: _inside(value) if isinstance(value, str) else value)]
Name = Annotated[Text, BeforeValidator(lambda value: _name(value) if isinstance(value, str) else value)]
Secret = Annotated[Text, BeforeValidator(lambda value: _secret(value) if isinstance(value, str) else value)]
Variables = dict[Annotated[str, BeforeValidator(_variable)], Annotated[str, BeforeValidator(_variable_value)]]
StallAfter = Annotated[float | Literal["auto"], PlainValidator(_stall_after), PlainSerializer(_stall_after_out)]

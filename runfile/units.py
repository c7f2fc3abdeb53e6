"""Durations and sizes as users write them: `10m`, `1h30m`, `24GiB`.

In Python a duration is seconds (float), a size is bytes (int). Both always carry a unit in a run file, because
`max_runtime: 12` means hours to one user and seconds to the next.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

_SECONDS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
    "w": Fraction(604800),
}
_LONG_UNITS = {
    "ms": ("msec", "millisecond", "milliseconds"),
    "s": ("sec", "secs", "second", "seconds"),
    "m": ("min", "mins", "minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "d": ("day", "days"),
    "w": ("week", "weeks"),
}
_DURATION_UNITS = _SECONDS | {long: _SECONDS[short] for short, longs in _LONG_UNITS.items() for long in longs}
_SIZE_UNITS: dict[str, int] = (
    {"b": 1}
    | {f"{prefix}{suffix}": 1000**power for power, prefix in enumerate("kmgtp", 1) for suffix in ("", "b")}
    | {f"{prefix}{suffix}": 1024**power for power, prefix in enumerate("kmgtp", 1) for suffix in ("i", "ib")}
)
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)"
_PART = re.compile(rf"\s*{_NUMBER}\s*([a-z]+)\s*", re.IGNORECASE | re.ASCII)
_STEPS = re.compile(r"\s*(\d{1,15})\s*steps?\s*", re.IGNORECASE | re.ASCII)
_BARE = re.compile(rf"\s*{_NUMBER}\s*", re.IGNORECASE | re.ASCII)

GIB = 1024**3


class UnitError(ValueError):
    """The text is not a duration or a size; the message says how to write one."""


def parse_duration(text: str) -> float:
    """Return the seconds of `90s`, `10m`, `1h30m` or `2 days`, more than zero and finite. Raises UnitError."""
    if _BARE.fullmatch(text):
        raise UnitError(f'a duration must have a unit: "{text.strip()}s", "{text.strip()}m", "{text.strip()}h"')
    total, at = Fraction(0), 0
    while part := _PART.match(text, at):
        unit = _DURATION_UNITS.get(part[2].lower())
        if unit is None:
            raise UnitError(f'"{part[2]}" is not a unit of time; use ms, s, m, h, d or w')
        total, at = total + Fraction(part[1]) * unit, part.end()
    if at == 0 or at != len(text):
        raise UnitError(f'"{text}" is not a duration; write it like 30s, 10m or 1h30m')
    return _positive_seconds(total)


def _positive_seconds(total: Fraction) -> float:
    try:
        seconds = float(total)
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise UnitError("a duration must be more than zero and finite")
    return seconds


def format_duration(seconds: float) -> str:
    """Return the canonical text, in seconds, which `parse_duration` reads back exactly."""
    return f"{int(seconds) if float(seconds).is_integer() else repr(float(seconds))}s"


def parse_size(text: str) -> int:
    """Return the bytes of `24GiB`, `500 MB` or `1.5Ti`: powers of 1024 with an `i`, else of 1000. Raises UnitError."""
    if _BARE.fullmatch(text):
        raise UnitError(f'a size must have a unit: "{text.strip()}GiB", "{text.strip()}MB"')
    part = _PART.fullmatch(text)
    if part is None or (unit := _SIZE_UNITS.get(part[2].lower())) is None:
        raise UnitError(f'"{text}" is not a size; write it like 24GiB, 500MB or 4096B')
    return int(Fraction(part[1]) * unit)


def format_size(size: int) -> str:
    """Return the canonical text, in the greatest exact unit, which `parse_size` reads back exactly."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        factor = _SIZE_UNITS[unit.lower()]
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


@dataclass(frozen=True, slots=True)
class Every:
    """An interval: so many seconds or so many optimizer steps, exactly one of the two."""

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise UnitError("give either a duration or a number of steps")
        if not (self.seconds or self.steps or 0) > 0:
            raise UnitError("an interval must be more than zero")

    @classmethod
    def parse(cls, text: str) -> "Every":
        """Read an interval such as `10m` or `500 steps`. Raises UnitError."""
        if steps := _STEPS.fullmatch(text):
            return cls(steps=int(steps[1]))
        if _BARE.fullmatch(text):
            raise UnitError(f'an interval must have a unit: "{text.strip()} steps" or "{text.strip()}s"')
        return cls(seconds=parse_duration(text))

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else format_duration(self.seconds or 0.0)

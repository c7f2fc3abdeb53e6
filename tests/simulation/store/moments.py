"""Times as SQL compares them: null is no time."""

from __future__ import annotations

from datetime import datetime, timedelta


def latest(*times: datetime | None) -> datetime | None:
    """GREATEST: of those that are there."""
    return max((time for time in times if time is not None), default=None)


def later(time: datetime | None, than: datetime) -> bool:
    """False where there is none."""
    return time is not None and time > than


def seconds(length: float) -> timedelta:
    """make_interval."""
    return timedelta(seconds=length)

"""The Hub's client as Relay needs it: with timeouts, and with errors sorted by what a caller does about them.

Works with huggingface_hub 1.31 to 2.x, which differ in the HTTP library below; nothing else of Relay's imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from storage.base import DamagedCopy, StoreRefused, StoreUnavailable

#: The HTTP library's base error, httpx's or httpx2's. Timeouts and broken lines are of it.
_TRANSPORT: type[BaseException] = HfHubHTTPError.__mro__[1]
_GONE = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)
_QUERY = re.compile(r"\?[^\s'\"]+")  #: signatures of storage addresses
_STALE, _BUSY = 412, (408, 409, 425, 429)


class HubNotFound(DamagedCopy):
    """The Hub has no such repository, revision or file."""


class ParentOutdated(Exception):
    """The branch has moved since the commit that was named as parent."""


class ReplyLost(StoreUnavailable):
    """No answer came: what was asked may have been done."""


def create_api(timeout: float) -> HfApi:
    """The client, none of whose requests waits longer than `timeout` seconds for the next byte."""

    def limited(request: Any) -> None:  # also requests that ask for no limit: the client's own paging does
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), timeout)

    def made() -> Any:
        http = default_client_factory()
        http.event_hooks = http.event_hooks | {"request": [*http.event_hooks["request"], limited]}
        return http

    set_client_factory(made)
    return HfApi(library_name="relay")


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """What the client raises, as StoreAway (Lost, when no answer came), StoreRefused, Gone or Stale; OSError is this
    host's disk.
    """
    try:
        yield
    except (StoreUnavailable, StoreRefused, DamagedCopy, ParentOutdated):
        raise
    except Exception as error:
        raise classify_error(_root(error), what) from error


def _root(error: BaseException) -> BaseException:
    """What an upload's thread met, which the client wraps."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def classify_error(error: BaseException, what: str) -> BaseException:
    """The error that a caller of ours knows."""
    said = f"{what}: {format_error(error)}"
    match error:
        case LocalEntryNotFoundError():
            return ReplyLost(said)
        case RepositoryNotFoundError() if get_token() is None:  # a private one looks the same to a stranger
            return StoreRefused(f"{said}; where it is private, HF_TOKEN is needed")
        case EntryNotFoundError() | RepositoryNotFoundError() | RevisionNotFoundError():
            return HubNotFound(said)
        case HfHubHTTPError():
            return _answered(error, said)
        case HFValidationError() | ValueError():
            return StoreRefused(said)
        case OfflineModeIsEnabled():
            return StoreRefused(f"{said}; HF_HUB_OFFLINE is set")
        case _ if isinstance(error, _TRANSPORT):
            return ReplyLost(said)
    return error


def _answered(error: HfHubHTTPError, said: str) -> BaseException:
    status = error.response.status_code
    if status == _STALE:
        return ParentOutdated(said)
    if status in _BUSY or status >= 500:
        return StoreUnavailable(said, _seconds(error.response.headers)) if status in _BUSY else ReplyLost(said)
    if status in (401, 403):
        return StoreRefused(f"{said}; HF_TOKEN must be one that may write there")
    return StoreRefused(said)


def _seconds(headers: Any) -> float:
    """How long the Hub asks to wait, if it does."""
    told = headers.get("Retry-After", "")
    return float(told) if told.isdigit() else 0.0


def format_error(error: BaseException) -> str:
    """What happened, without the signatures of addresses."""
    said = _QUERY.sub("", " ".join(str(error).split()))
    return said or type(error).__name__

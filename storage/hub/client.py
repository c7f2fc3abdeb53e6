"""The Hub's client with timeouts, and its errors translated into those of `storage.base`.

Works with huggingface_hub 1.31 to 2.x, which differ in the HTTP library below.
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

#: The base error of the HTTP library, httpx or httpx2: timeouts and broken connections are subclasses.
_TRANSPORT: type[BaseException] = HfHubHTTPError.__mro__[1]
_GONE = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)
_QUERY = re.compile(r"\?[^\s'\"]+")  #: signatures of storage urls
_PRECONDITION_FAILED, _BUSY = 412, (408, 409, 425, 429)


class HubNotFound(DamagedCopy):
    """The Hub has no such repository, revision or file."""


class ParentOutdated(Exception):
    """The branch has moved: the commit that was named as parent is not its head any more."""


class ReplyLost(StoreUnavailable):
    """No reply came: the request may have been carried out."""


def create_api(timeout: float) -> HfApi:
    """Return a client whose requests wait at most `timeout` seconds for the next byte."""

    def set_timeout(request: Any) -> None:  # also of requests that set no timeout, as the client's paging does
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), timeout)

    def make_http_client() -> Any:
        http = default_client_factory()
        http.event_hooks = http.event_hooks | {"request": [*http.event_hooks["request"], set_timeout]}
        return http

    set_client_factory(make_http_client)
    return HfApi(library_name="relay")


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Translate what the client raises while it does `what`.

    Raises StoreUnavailable (ReplyLost when no reply came), StoreRefused, HubNotFound or ParentOutdated; an OSError is
    of this host's disk.
    """
    try:
        yield
    except (StoreUnavailable, StoreRefused, DamagedCopy, ParentOutdated):
        raise
    except Exception as error:
        raise classify_error(_unwrap(error), what) from error


def _unwrap(error: BaseException) -> BaseException:
    """Return the error of an upload's thread, which the client wraps."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def classify_error(error: BaseException, what: str) -> BaseException:
    """Return the error of ours for one of the client's."""
    text = f"{what}: {format_error(error)}"
    match error:
        case LocalEntryNotFoundError():
            return ReplyLost(text)
        case RepositoryNotFoundError() if get_token() is None:  # without a token a private repository looks the same
            return StoreRefused(f"{text}; where it is private, HF_TOKEN is needed")
        case EntryNotFoundError() | RepositoryNotFoundError() | RevisionNotFoundError():
            return HubNotFound(text)
        case HfHubHTTPError():
            return _classify_reply(error, text)
        case HFValidationError() | ValueError():
            return StoreRefused(text)
        case OfflineModeIsEnabled():
            return StoreRefused(f"{text}; HF_HUB_OFFLINE is set")
        case _ if isinstance(error, _TRANSPORT):
            return ReplyLost(text)
    return error


def _classify_reply(error: HfHubHTTPError, text: str) -> BaseException:
    status = error.response.status_code
    if status == _PRECONDITION_FAILED:
        return ParentOutdated(text)
    if status in _BUSY or status >= 500:
        return StoreUnavailable(text, _retry_after(error.response.headers)) if status in _BUSY else ReplyLost(text)
    if status in (401, 403):
        return StoreRefused(f"{text}; HF_TOKEN must be one that may write there")
    return StoreRefused(text)


def _retry_after(headers: Any) -> float:
    """Return the seconds that the Hub asks to wait; 0 when it does not ask."""
    header = headers.get("Retry-After", "")
    return float(header) if header.isdigit() else 0.0


def format_error(error: BaseException) -> str:
    """Return an error as one line, without the signatures of urls."""
    text = _QUERY.sub("", " ".join(str(error).split()))
    return text or type(error).__name__

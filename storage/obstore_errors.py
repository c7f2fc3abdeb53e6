"""What a bucket's client says when something goes wrong, in the words of `storage.base`.

Credentials are in no message: of a uri in it only what stands before its parameters is kept.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from obstore import exceptions

from storage.base import StoreAway, StoreRefused

_PARAMETERS = re.compile(r"(\w+://[^\s?,)]*)\?[^\s,)]*")
_STATUS = re.compile(r"status code: (\d{3})")
#: Where clients look for a cloud's own credentials when the environment has none.
_METADATA = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_BUSY = {408, 409, 425, 429}


class Gone(StoreAway):
    """There is no such object, or it ends before what was asked for. Who did not expect that tries again."""


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Around one call of the client; `where` says what it was about."""
    try:
        yield
    except FileNotFoundError as error:
        raise _gone(where, error) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        hint = "its credentials are taken from this host's environment"
        raise StoreRefused(f"{where}: access is denied ({_plain(error)}); {hint}") from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise
    except exceptions.GenericError as error:
        raise _generic(where, error) from error
    except (exceptions.BaseError, ValueError) as error:
        raise StoreRefused(f"{where}: {_plain(error)}") from error


def _generic(where: str, error: Exception) -> StoreAway | StoreRefused:
    text = str(error)
    if any(host in text for host in _METADATA):
        return StoreRefused(f"{where}: no credentials for it in this host's environment")
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    if status in (404, 416):
        return _gone(where, error)
    if 400 <= status < 500 and status not in _BUSY:
        return StoreRefused(f"{where}: {_plain(error)}")
    return StoreAway(f"{where}: {_plain(error)}")


def _gone(where: str, error: Exception) -> StoreAway | StoreRefused:
    if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
        return StoreRefused(f"{where}: there is no such bucket; make it first")
    return Gone(f"{where} is gone, or a part of it")


def _plain(error: Exception) -> str:
    """One line, without what only its authors can read, nor any parameter that may be a key."""
    text = str(error).partition("\n\nDebug source:")[0]
    return _PARAMETERS.sub(r"\1", " ".join(text.split()))[:500]

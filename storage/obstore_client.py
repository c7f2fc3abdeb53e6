"""Clients of buckets, through obstore, and their errors in the terms of `storage.base`.

Credentials come from this host's environment. They are in no message: of a uri only what stands before its parameters
is kept.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from storage.base import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

BucketClient = S3Store | GCSStore | AzureStore

CONNECT = timedelta(seconds=10)
RETRIES = 6
_PARAMETERS = re.compile(r"(\w+://[^\s?,)]*)\?[^\s,)]*")
_STATUS = re.compile(r"status code: (\d{3})")
#: The metadata services that clients ask for credentials when the environment has none.
_METADATA = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_BUSY = {408, 409, 425, 429}


class BucketClients:
    """The clients of one scheme's buckets, each made when its bucket is first used."""

    def __init__(self, scheme: str, request_timeout: timedelta, retry_for: timedelta) -> None:
        self._scheme = scheme
        self._request_timeout = request_timeout
        self._retry_for = retry_for
        self._made: dict[str, BucketClient] = {}

    def get(self, bucket: str) -> BucketClient:
        """Return the client of a bucket. Raises StoreRefused when the environment's settings are invalid."""
        if bucket not in self._made:
            self._made[bucket] = self._make(bucket)
        return self._made[bucket]

    def _make(self, bucket: str) -> BucketClient:
        options: ClientConfig = {
            "timeout": self._request_timeout,
            "connect_timeout": min(self._request_timeout, CONNECT),
            "allow_http": _allows_http(),
        }
        retry: RetryConfig = {"retry_timeout": self._retry_for, "max_retries": RETRIES}
        try:
            match self._scheme:
                case "s3":
                    checksum = os.environ.get("AWS_CHECKSUM_ALGORITHM", "SHA256")
                    return S3Store(
                        bucket, client_options=options, retry_config=retry, config={"checksum_algorithm": checksum}
                    )
                case "gs":
                    return GCSStore(bucket, client_options=options, retry_config=retry)
                case _:
                    return AzureStore(bucket, client_options=options, retry_config=retry)
        except (exceptions.BaseError, ValueError) as error:
            reason = str(error).partition("\n")[0][:300]
            raise StoreRefused(
                f"{self._scheme}://{bucket}: the settings in this host's environment are invalid: {reason}"
            ) from error


def _allows_http() -> bool:
    """Return whether the environment names an endpoint with http://, which is then allowed."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


class ObjectMissing(StoreUnavailable):
    """There is no such object, or it ends before the requested range."""


@contextlib.contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Translate what one call of the client raises; `where` says what the call was about."""
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(where, error) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        hint = "its credentials are taken from this host's environment"
        raise StoreRefused(f"{where}: access is denied ({_format_error(error)}); {hint}") from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise
    except exceptions.GenericError as error:
        raise _translate_generic(where, error) from error
    except (exceptions.BaseError, ValueError) as error:
        raise StoreRefused(f"{where}: {_format_error(error)}") from error


def _translate_generic(where: str, error: Exception) -> StoreUnavailable | StoreRefused:
    text = str(error)
    if any(host in text for host in _METADATA):
        return StoreRefused(f"{where}: no credentials for it in this host's environment")
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    if status in (404, 416):
        return _missing(where, error)
    if 400 <= status < 500 and status not in _BUSY:
        return StoreRefused(f"{where}: {_format_error(error)}")
    return StoreUnavailable(f"{where}: {_format_error(error)}")


def _missing(where: str, error: Exception) -> StoreUnavailable | StoreRefused:
    if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
        return StoreRefused(f"{where}: there is no such bucket; make it first")
    return ObjectMissing(f"{where} is gone, or a part of it")


def _format_error(error: Exception) -> str:
    """Return an error as one line, without debug output and without parameters, which may be keys."""
    text = str(error).partition("\n\nDebug source:")[0]
    return _PARAMETERS.sub(r"\1", " ".join(text.split()))[:500]

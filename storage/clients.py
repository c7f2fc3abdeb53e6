"""The clients of buckets, one for each, with what the environment of this host says of them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from storage.base import StoreRefused

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Client = S3Store | GCSStore | AzureStore

CONNECT = timedelta(seconds=10)
RETRIES = 6


class Clients:
    """Made when a bucket is first asked for."""

    def __init__(self, scheme: str, request_timeout: timedelta, retry_for: timedelta) -> None:
        self._scheme = scheme
        self._request_timeout = request_timeout
        self._retry_for = retry_for
        self._made: dict[str, Client] = {}

    def of(self, bucket: str) -> Client:
        """StoreRefused when the environment says what cannot be."""
        if bucket not in self._made:
            self._made[bucket] = self._make(bucket)
        return self._made[bucket]

    def _make(self, bucket: str) -> Client:
        options: ClientConfig = {
            "timeout": self._request_timeout,
            "connect_timeout": min(self._request_timeout, CONNECT),
            "allow_http": _plain_http(),
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
            raise StoreRefused(f"{self._scheme}://{bucket}: this host's environment does not do: {reason}") from error


def _plain_http() -> bool:
    """An endpoint of one's own that is named with http:// is meant so."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)

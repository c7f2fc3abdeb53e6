"""Addresses of stores, as uris: `file:///mnt/share/runs`, `s3://bucket/prefix`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

BUCKET_SCHEMES = ("s3", "gs", "az")
SCHEMES = ("file", *BUCKET_SCHEMES)
HUB_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")  #: a repository, `owner/name`
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()=-]+(/[A-Za-z0-9!_.*'()=-]+)*")


class AddressError(ValueError):
    """A uri is not the address of a store; the message says what it must look like."""


@dataclass(frozen=True, slots=True)
class Address:
    """A folder in a store. For `file` the path is absolute and `bucket` empty; elsewhere the path is a key."""

    scheme: str
    bucket: str
    path: str

    def __truediv__(self, below: str) -> Address:
        return Address(self.scheme, self.bucket, f"{self.path}/{below}" if self.path else below)

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file://{quote(self.path)}"
        return f"{self.scheme}://{self.bucket}/{self.path}".removesuffix("/")


def parse_address(uri: str) -> Address:
    """Return the address that `uri` names. Raises AddressError for other schemes and for uris with credentials."""
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise AddressError(f"{parts.scheme or uri}:// is not a store; one of {', '.join(f'{s}://' for s in SCHEMES)}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise AddressError(
            f"{parts.scheme}:// must be written without keys, passwords and parameters: "
            "hosts take those from their own environment"
        )
    if parts.scheme == "file":
        return _file(parts.netloc, unquote(parts.path))
    if not _BUCKET.fullmatch(parts.netloc):
        example = f"{parts.scheme}://bucket/prefix"
        raise AddressError(f"{parts.netloc!r} is not the name of a bucket; write it as {example}")
    prefix = parts.path.strip("/")
    if prefix and (not _PREFIX.fullmatch(prefix) or not {".", ".."}.isdisjoint(prefix.split("/"))):
        raise AddressError(f"{prefix!r}: a prefix must have letters, digits and !_.*'()=- between single slashes")
    return Address(parts.scheme, parts.netloc, prefix)


def _file(host: str, path: str) -> Address:
    pure = PurePosixPath(path)
    if host or not pure.is_absolute() or ".." in pure.parts or "\0" in path or len(pure.parts) < 2:
        raise AddressError("a file:// store must be an absolute folder that hosts share, like file:///mnt/share/runs")
    return Address("file", "", "/" + "/".join(pure.parts[1:]))

"""Rows in a bucket (`s3://`, `gs://`, `az://`): an object, a glob, or a prefix that is used like a folder.

Objects are downloaded once and kept on this host, under what the store says of them (tag and size), so an object is
downloaded again only when it has changed. Credentials come from the environment, as for checkpoints.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore

from runfile import ROW_SUFFIXES
from storage.address import BUCKET_SCHEMES, Address, AddressError, parse_address
from storage.base import StoreRefused, StoreUnavailable
from storage.obstore_client import BucketClient, BucketClients, ObjectMissing, translate_errors
from trainers.data import cache
from trainers.errors import ConfigError, HostError

_REQUEST, _RETRY = timedelta(seconds=120), timedelta(seconds=120)
_GLOB = re.compile(r"[*?[]")

ObjectListing = Mapping[str, Any]  #: one object of a listing


def is_bucket_path(path: str) -> bool:
    """Return True for a path in a bucket."""
    return path.partition("://")[0] in BUCKET_SCHEMES and "://" in path


def fetch_objects(path: str) -> list[tuple[Path, str]]:
    """Download the objects that a path means. Return them as files of this host with their addresses, sorted by key.

    Raises ConfigError for a path without objects, and HostError where the bucket is out of reach or closed to this
    host.
    """
    magic = _GLOB.search(path)
    fixed = path[: path.rindex("/", 0, magic.start())] if magic else path
    try:
        address = parse_address(fixed)
        client = BucketClients(address.scheme, _REQUEST, _RETRY).get(address.bucket)
        with translate_errors(path):
            found = sorted(_list_objects(client, address, path if magic else ""), key=lambda each: str(each["path"]))
            whole = Address(address.scheme, address.bucket, "")
            return [(_fetch_cached(client, whole / each["path"], each), str(whole / each["path"])) for each in found]
    except AddressError as error:
        raise ConfigError(f"data: {path}: {error}") from error
    except (ObjectMissing, FileNotFoundError) as error:
        raise ConfigError(f"data: there is no object {path}") from error
    except (StoreRefused, StoreUnavailable) as error:
        raise HostError(f"data: {error}") from error


def _list_objects(client: BucketClient, address: Address, pattern: str) -> Iterator[ObjectListing]:
    """Yield the objects that match the pattern, or the object at the address, or the files of rows below it."""
    matches = re.compile(_glob_to_regex(pattern.partition("://")[2].partition("/")[2])) if pattern else None
    below = [each for page in obstore.list(client, address.path or None) for each in page]
    inside = [each for each in below if str(each["path"]).startswith(f"{address.path}/" if address.path else "")]
    if matches:
        found = [each for each in inside if matches.fullmatch(str(each["path"]))]
    elif inside:
        found = [each for each in inside if _has_rows_suffix(str(each["path"]))]
    else:
        found = [obstore.head(client, address.path)]
    if not found:
        raise ConfigError(
            f"data: there is no object {pattern or f'of rows below {address} ({chr(44).join(ROW_SUFFIXES)})'}"
        )
    yield from found


def _has_rows_suffix(key: str) -> bool:
    """Return True for a key that ends like a file of rows."""
    return key.lower().removesuffix(".gz").removesuffix(".zst").endswith(ROW_SUFFIXES)


def _glob_to_regex(pattern: str) -> str:
    """Return a glob as a regular expression: `*` and `?` match within a part of the path, `**` across parts."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts)


def _fetch_cached(client: BucketClient, at: Address, said: ObjectListing) -> Path:
    """Return the object's file on this host, downloaded unless it is there."""
    folder = cache.entry_folder("object", str(at), said.get("e_tag"), said["size"], str(said["last_modified"]))
    file = folder / Path(at.path).name
    if not file.is_file() or file.stat().st_size != said["size"]:
        shutil.rmtree(folder, ignore_errors=True)
        with cache.new_entry(folder) as draft:
            _download(client, at, said["size"], draft / file.name)
    return file


def _download(client: BucketClient, at: Address, size: int, to: Path) -> None:
    """Download an object. Raises HostError when it has another size than the listing says."""
    arrived = 0
    with cache.disk_errors(to):
        file = to.open("wb", buffering=0)
    with file:
        for chunk in obstore.get(client, at.path).stream():
            with cache.disk_errors(to):
                arrived += file.write(chunk)
    if arrived != size:
        raise HostError(f"data: {at} changed while it was fetched; try again")

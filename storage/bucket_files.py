"""Plain files under a prefix of a bucket, for other programs to read: no manifest and none of Relay's paths.

Nothing is ever overwritten: a file that is there with the same content is not sent again, another one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError

from storage.address import Address
from storage.base import Progress, StoreRefused
from storage.bucket import DIGEST_ATTRIBUTE
from storage.manifest import ManifestFile, hash_file
from storage.obstore_client import BucketClient, BucketClients, translate_errors
from storage.threads import in_thread
from storage.throttling import RateLimit
from storage.upload import SINGLE, FileUpload

REQUEST, RETRY = timedelta(seconds=120), timedelta(seconds=30)


async def put_files(to: Address, files: Mapping[str, Path], progress: Progress) -> None:
    """Upload files below the prefix, in the given order. Raises StoreRefused when other objects lie there."""
    client = BucketClients(to.scheme, REQUEST, RETRY).get(to.bucket)
    described = {path: await in_thread(_describe_file, path, source) for path, source in files.items()}
    there = await _find_present(client, to, described)
    for path, source in files.items():
        if path in there:
            progress(described[path].size)
        else:
            await _upload_file(client, to / path, source, described[path], progress)


def _describe_file(path: str, source: Path) -> ManifestFile:
    digest, size = hash_file(source)
    return ManifestFile(path, size, digest)


async def _find_present(client: BucketClient, to: Address, files: Mapping[str, ManifestFile]) -> set[str]:
    """Return the paths of the files that are there already."""
    prefix, found = f"{to.path}/" if to.path else "", set()
    with translate_errors(str(to)):
        async for page in obstore.list(client, prefix or None):
            for key in (meta["path"] for meta in page):
                path = key.removeprefix(prefix)
                if path not in files or await _read_digest(client, key) != files[path].digest:
                    raise StoreRefused(f"{to / path} is another file and is not overwritten; name another prefix")
                found.add(path)
    return found


async def _read_digest(client: BucketClient, key: str) -> str | None:
    """Return the digest that an object carries as an attribute."""
    answer = await obstore.get_async(client, key, options={"head": True})
    return answer.attributes.get(DIGEST_ATTRIBUTE)


async def _upload_file(client: BucketClient, at: Address, source: Path, file: ManifestFile, progress: Progress) -> None:
    upload = FileUpload(source, file, RateLimit(), progress)
    if file.size > SINGLE:
        await upload.send_in_parts(client, at, {DIGEST_ATTRIBUTE: file.digest})
        return
    data = await upload.read_all()
    try:
        with translate_errors(str(at)):
            await obstore.put_async(
                client, at.path, data, attributes={DIGEST_ATTRIBUTE: file.digest}, mode="create", use_multipart=False
            )
    except AlreadyExistsError as error:
        raise StoreRefused(f"{at} was created by another writer just now and is not overwritten") from error

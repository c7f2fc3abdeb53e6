"""`s3://`, `gs://`, `az://`: buckets, through obstore.

A folder is objects under a prefix. Its manifest is created last and only where there is none (S4), so of two writers
to one prefix one is refused. Every object carries its digest as an attribute, so a resumed upload does not send the
objects again that are there whole, and objects that an earlier folder of the run has too are copied by the backend.
Large files are sent in parts. The client aborts such an upload when it fails; the parts of a process that was killed
are left to the bucket's lifecycle rule.

Credentials come from the host's environment alone, under the names that each cloud's own tools use.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from storage.address import Address, AddressError, parse_address
from storage.base import DamagedCopy, FolderKey, LocateFile, Progress, StoreRefused, StoreUnavailable, ignore_progress
from storage.download import PartialFile, is_fetched, parse_manifest, write_manifest
from storage.layout import INDEX_FILE, Layout, folder_path, index_line, is_indexed, kind_path, missing_line_end
from storage.manifest import MANIFEST_FILE, MAX_BYTES, Manifest, ManifestError, ManifestFile, hash_file
from storage.obstore_client import BucketClient, BucketClients, ObjectMissing, translate_errors
from storage.threads import in_thread
from storage.throttling import RateLimit, for_each_limited
from storage.upload import SINGLE, FileUpload

if TYPE_CHECKING:
    from obstore import PutMode

DIGEST_ATTRIBUTE = "relay-digest"  #: the attribute of an object that holds its digest
STREAMS = 4  #: files in transfer at once: each request takes its time, however small the file
PIECE = 8 * 1024 * 1024  #: bytes of one request of a download
AHEAD = 3  #: pieces of a file that are requested at once
EARLIER = 3  #: newest folders of a run whose objects may be copied
INDEX_TRIES = 20

REQUEST_TIMEOUT, RETRY_FOR = timedelta(seconds=120), timedelta(seconds=30)


class BucketStore:
    """Fetches, repairs and removes any uri of its scheme, and stores folders below `base`."""

    def __init__(
        self,
        scheme: str,
        base: str = "",
        layout: Layout = Layout.RELAY,
        *,
        rate_limit: RateLimit | None = None,
        request_timeout: float = 120.0,
        retry_for: float = 30.0,
    ) -> None:
        """Times are in seconds; the client retries for `retry_for` before the store counts as unavailable."""
        self.scheme = scheme
        self._base = self._address(base) if base else None
        self._layout = layout
        self._rate_limit = rate_limit or RateLimit()
        self._clients = BucketClients(scheme, timedelta(seconds=request_timeout), timedelta(seconds=retry_for))
        self._earlier: dict[str, dict[str, str]] = {}  #: keys of objects by digest, by path of run and kind

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        folder = self._address(self.uri_of(key))
        assert self._base is not None
        kind_folder = self._base / kind_path(key, self._layout)
        if kind_folder.path not in self._earlier:
            self._earlier[kind_folder.path] = await self._find_earlier_objects(kind_folder)
        earlier = self._earlier[kind_folder.path]
        await self._upload_missing(folder, manifest, locate, progress, earlier)
        earlier |= {file.digest: f"{folder.path}/{file.path}" for file in manifest.files}
        line = index_line(key, manifest, str(folder), time.time())
        await self._append_to_index(self._base / INDEX_FILE, line, str(folder))
        return str(folder)

    def uri_of(self, key: FolderKey) -> str:
        """Return the uri at which `put` keeps a folder. Raises StoreRefused when the store has no base."""
        if self._base is None:
            raise StoreRefused(f"this {self.scheme}:// store has no base to put anything below")
        return str(self._base / folder_path(key, self._layout))

    async def repair(
        self, uri: str, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> None:
        """Write every object anew, since it is not known which of them are damaged."""
        await self.remove(uri)
        await self._upload_missing(self._address(uri), manifest, locate, progress, {})

    async def has(self, uri: str, digest: str) -> bool:
        folder = self._address(uri)
        try:
            manifest = await self._read_manifest(folder, digest)
        except DamagedCopy:
            return False
        sizes = await self._list_sizes(folder)
        return all(sizes.get(file.path) == file.size for file in manifest.files)

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = ignore_progress) -> Manifest:
        source = self._address(uri)
        manifest = await self._read_manifest(source, digest)

        async def fetch_file(file: ManifestFile) -> None:
            if await in_thread(is_fetched, folder, file):
                progress(file.size)
            else:
                await self._download(source / file.path, folder, file, progress)

        await for_each_limited(manifest.files, fetch_file, STREAMS)
        await in_thread(write_manifest, folder, manifest)
        return manifest

    async def remove(self, uri: str) -> None:
        """Delete the manifest first, so that the folder does not count any more, then the other objects."""
        folder = self._address(uri)
        await self._delete(folder, [MANIFEST_FILE])
        await self._delete(folder, list(await self._list_sizes(folder)))

    # One folder

    async def _upload_missing(
        self, folder: Address, manifest: Manifest, locate: LocateFile, progress: Progress, earlier: dict[str, str]
    ) -> None:
        """Upload what is missing of a folder, and its manifest last."""
        sizes = await self._list_sizes(folder)
        if MANIFEST_FILE in sizes:
            await self._require_same(folder, manifest)

        async def add(file: ManifestFile) -> None:
            there = sizes.get(file.path) == file.size
            if (there and (MANIFEST_FILE in sizes or await self._read_digest(folder / file.path) == file.digest)) or (
                await self._copy_earlier(earlier.get(file.digest), folder / file.path, file)
            ):
                progress(file.size)
            else:
                await self._upload_file(folder / file.path, locate(file), file, progress, broken=file.path in sizes)

        await for_each_limited(manifest.files, add, STREAMS)
        if MANIFEST_FILE not in sizes:
            await self._create(folder / MANIFEST_FILE, manifest.to_bytes(), manifest.digest)

    async def _require_same(self, folder: Address, manifest: Manifest) -> None:
        if await self._read(folder / MANIFEST_FILE) != manifest.to_bytes():
            raise StoreRefused(f"{folder} holds other content, and nothing is ever overwritten")

    async def _read_manifest(self, folder: Address, digest: str) -> Manifest:
        try:
            return await in_thread(parse_manifest, await self._read(folder / MANIFEST_FILE), digest)
        except ObjectMissing as error:
            raise DamagedCopy(f"{folder} is gone") from error

    async def _list_sizes(self, folder: Address) -> dict[str, int]:
        """Return the sizes of the objects below a prefix, by their path in it."""
        found: dict[str, int] = {}
        with translate_errors(str(folder)):
            async for page in obstore.list(self._client(folder.bucket), f"{folder.path}/"):
                found |= {meta["path"].removeprefix(f"{folder.path}/"): meta["size"] for meta in page}
        return found

    async def _find_earlier_objects(self, kind_folder: Address) -> dict[str, str]:
        """Return the keys of the objects in the run's newest whole folders of this kind, by digest."""
        whole: list[tuple[Any, str]] = []
        with translate_errors(str(kind_folder)):
            async for page in obstore.list(self._client(kind_folder.bucket), f"{kind_folder.path}/"):
                whole += [
                    (each["last_modified"], each["path"]) for each in page if each["path"].endswith(f"/{MANIFEST_FILE}")
                ]
        found: dict[str, str] = {}
        for _, key in sorted(whole)[-EARLIER:]:
            with contextlib.suppress(ManifestError, ObjectMissing):
                manifest = Manifest.from_bytes(await self._read(Address(kind_folder.scheme, kind_folder.bucket, key)))
                found |= {file.digest: f"{key.removesuffix(MANIFEST_FILE)}{file.path}" for file in manifest.files}
        return found

    async def _delete(self, folder: Address, paths: Sequence[str]) -> None:
        with contextlib.suppress(ObjectMissing), translate_errors(str(folder)):
            await obstore.delete_async(self._client(folder.bucket), [(folder / path).path for path in paths])

    # One object

    async def _read(self, at: Address) -> bytes:
        with translate_errors(str(at)):
            answer = await obstore.get_async(self._client(at.bucket), at.path)
            if answer.meta["size"] > MAX_BYTES:
                raise DamagedCopy(f"{at} has {answer.meta['size']} bytes, more than any manifest")
            return bytes(await answer.bytes_async())

    async def _read_digest(self, at: Address) -> str | None:
        """Return the digest that an object carries, or None when there is no object or no digest."""
        with contextlib.suppress(ObjectMissing), translate_errors(str(at)):
            answer = await obstore.get_async(self._client(at.bucket), at.path, options={"head": True})
            return answer.attributes.get(DIGEST_ATTRIBUTE)
        return None

    async def _create(self, at: Address, data: bytes, digest: str, *, replacing: bool = False) -> None:
        """Create an object in one request; the same object is there already when an earlier reply was lost."""
        try:
            with translate_errors(str(at)):
                mode: PutMode = "overwrite" if replacing else "create"
                await obstore.put_async(
                    self._client(at.bucket),
                    at.path,
                    data,
                    attributes={DIGEST_ATTRIBUTE: digest},
                    mode=mode,
                    use_multipart=False,
                )
        except AlreadyExistsError as error:
            if await self._read(at) != data:
                raise StoreRefused(f"{at} holds other content, and nothing is ever overwritten") from error

    async def _copy_earlier(self, key: str | None, at: Address, file: ManifestFile) -> bool:
        """Return whether the backend could copy an object of an earlier folder."""
        if key is None:
            return False
        source = Address(at.scheme, at.bucket, key)
        if await self._read_digest(source) != file.digest:
            return False
        try:
            with translate_errors(str(at)):
                await obstore.copy_async(self._client(at.bucket), key, at.path)
        except (ObjectMissing, StoreRefused):  # removed meanwhile, or too large to copy
            return False
        return True

    async def _upload_file(
        self, at: Address, source: Path, file: ManifestFile, progress: Progress, *, broken: bool
    ) -> None:
        """Upload an object of the folder; it replaces one that is there in part when `broken` is set."""
        upload = FileUpload(source, file, self._rate_limit, progress)
        if file.size <= SINGLE:
            await self._create(at, await upload.read_all(), file.digest, replacing=broken)
        else:
            await upload.send_in_parts(self._client(at.bucket), at, {DIGEST_ATTRIBUTE: file.digest})

    async def _download(self, at: Address, folder: Path, file: ManifestFile, progress: Progress) -> None:
        with contextlib.ExitStack() as stack:
            part = await in_thread(stack.enter_context, PartialFile(folder, file))
            progress(part.offset)
            await self._download_rest(at, part, file, progress)
            if not part.is_correct:  # the interrupted download may have left wrong bytes
                progress(-part.offset)
                part.restart()
                await self._download_rest(at, part, file, progress)
            await in_thread(part.finish)

    async def _download_rest(self, at: Address, part: PartialFile, file: ManifestFile, progress: Progress) -> None:
        try:
            async for piece in self._read_pieces(at, part.offset, file.size):
                await in_thread(part.write, piece)
                progress(len(piece))
                await self._rate_limit.take(len(piece))
        except ObjectMissing as error:
            raise DamagedCopy(f"{file.path} is gone, or only a part of it is there") from error

    async def _read_pieces(self, at: Address, offset: int, size: int) -> AsyncIterator[memoryview]:
        """Yield the rest of an object in order, with a few requests ahead."""
        client = self._client(at.bucket)

        async def piece(start: int) -> memoryview:
            with translate_errors(str(at)):
                length = min(PIECE, size - start)
                return memoryview(await obstore.get_range_async(client, at.path, start=start, length=length))

        starts = iter(range(offset, size, PIECE))
        coming = [asyncio.ensure_future(piece(start)) for start in islice(starts, AHEAD)]
        try:
            while coming:
                yield await coming.pop(0)
                if (start := next(starts, None)) is not None:
                    coming.append(asyncio.ensure_future(piece(start)))
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    # The index

    async def _append_to_index(self, at: Address, line: bytes, uri: str) -> None:
        """Append a line to the index unless it lists this folder; a write that meets another one is tried again."""
        client = self._client(at.bucket)
        for _ in range(INDEX_TRIES):
            lines: bytes = b""
            mode: PutMode = "create"
            with contextlib.suppress(ObjectMissing), translate_errors(str(at)):
                answer = await obstore.get_async(client, at.path)
                lines, mode = bytes(await answer.bytes_async()), {"e_tag": answer.meta["e_tag"]}
            if is_indexed(lines, uri):
                return
            try:
                with translate_errors(str(at)):
                    await obstore.put_async(client, at.path, lines + missing_line_end(lines) + line, mode=mode)
                return
            except (AlreadyExistsError, PreconditionError):
                continue
        raise StoreUnavailable(f"{at} is written by too many hosts at once")

    def _client(self, bucket: str) -> BucketClient:
        return self._clients.get(bucket)

    def _address(self, uri: str) -> Address:
        try:
            address = parse_address(uri)
        except AddressError as error:
            raise StoreRefused(str(error)) from error
        if address.scheme != self.scheme:
            raise StoreRefused(f"{uri} is not a {self.scheme}:// uri")
        return address


async def put_files(to: Address, files: Mapping[str, Path], progress: Progress) -> None:
    """Upload plain files below a prefix, in the given order, for other programs to read: without a manifest.

    Nothing is overwritten: a file that is there with the same content is not sent again. Raises StoreRefused when other
    objects lie there.
    """
    client = BucketClients(to.scheme, REQUEST_TIMEOUT, RETRY_FOR).get(to.bucket)
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
                if path not in files or await _fetch_digest(client, key) != files[path].digest:
                    raise StoreRefused(f"{to / path} is another file and is not overwritten; name another prefix")
                found.add(path)
    return found


async def _fetch_digest(client: BucketClient, key: str) -> str | None:
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

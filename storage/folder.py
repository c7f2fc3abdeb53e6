"""`file://`: a folder that hosts share. No folder in it is ever seen in part, and nothing is ever overwritten.

A folder is written in a scratch folder, synced and renamed into place as a whole, so of two writers to one path one is
refused. A file that an earlier folder of the run has too is linked after its bytes have been verified, so that a link
never spreads damage. The base must exist: a share that is not mounted would otherwise be a folder on the host's own
disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from storage.address import Address, AddressError, parse_address
from storage.base import DamagedCopy, FolderKey, LocateFile, Progress, StoreRefused, StoreUnavailable, ignore_progress
from storage.download import PartialFile, is_fetched, parse_manifest, write_manifest
from storage.layout import INDEX_FILE, Layout, folder_path, index_line, is_indexed, kind_path, missing_line_end
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, ManifestFile, hash_file
from storage.threads import in_thread
from storage.throttling import RateLimit, for_each_limited

CHUNK = 4 * 1024 * 1024
EARLIER = 3  #: newest folders of a run whose files may be linked
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}

_SCRATCH = ".relay"
_LOCK = "lock"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class FolderStore:
    """Fetches, repairs and removes any `file://` uri, and stores folders below `base`.

    Before it first writes there, it removes the scratch folders that dead processes of `writer` have left.
    """

    scheme = "file"

    def __init__(
        self,
        base: str = "",
        layout: Layout = Layout.RELAY,
        *,
        writer: str | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        self._base = _address(base) if base else None
        self._layout = layout
        self._writer = writer or socket.gethostname()
        self._rate_limit = rate_limit or RateLimit()
        self._cleaned = False

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        uri = self.uri_of(key)
        assert self._base is not None
        await self._clean()
        earlier = await in_thread(self._find_earlier_files, key)
        if await in_thread(_is_whole, _path(uri), manifest):
            progress(manifest.size)
        else:
            await self._write_folder(Path(self._base.path), _path(uri), manifest, locate, progress, earlier)
        line = index_line(key, manifest, uri, time.time())
        await in_thread(_append_to_index, Path(self._base.path) / INDEX_FILE, line, uri)
        return uri

    def uri_of(self, key: FolderKey) -> str:
        """Return the uri at which `put` keeps a folder. Raises StoreRefused when the store has no base."""
        if self._base is None:
            raise StoreRefused("this file:// store has no base folder to put anything below")
        return str(self._base / folder_path(key, self._layout))

    async def _clean(self) -> None:
        """Remove the scratch folders of this writer's dead processes, the first time it is called."""
        if self._base is not None and not self._cleaned:
            await in_thread(_clean, Path(self._base.path), self._writer)
            self._cleaned = True

    async def repair(
        self, uri: str, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> None:
        folder = _path(uri)
        base = await in_thread(_base_of, folder, self._base)
        await self._write_folder(base, folder, manifest, locate, progress, None)

    async def has(self, uri: str, digest: str) -> bool:
        def look() -> bool:
            if self._base is not None and _is_empty(Path(self._base.path)):
                return False
            try:
                manifest = _read_manifest(_path(uri), digest)
            except DamagedCopy:
                return False
            return all(is_fetched(_path(uri), file) for file in manifest.files)

        return await in_thread(look)

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = ignore_progress) -> Manifest:
        source = _path(uri)
        manifest = await in_thread(_read_manifest, source, digest)

        async def fetch_file(file: ManifestFile) -> None:
            if await in_thread(is_fetched, folder, file):
                progress(file.size)
            else:
                await self._download(source, folder, file, progress)

        await for_each_limited(manifest.files, fetch_file)
        await in_thread(write_manifest, folder, manifest)
        return manifest

    async def remove(self, uri: str) -> None:
        await in_thread(_remove, _path(uri))

    async def _write_folder(
        self,
        base: Path,
        folder: Path,
        manifest: Manifest,
        locate: LocateFile,
        progress: Progress,
        earlier: Mapping[str, Path] | None,
    ) -> None:
        """Write a folder and rename it into place.

        `earlier` are files that may be linked, by digest; None repairs a folder, which replaces what is there.
        """
        with contextlib.ExitStack() as stack:
            try:
                scratch = await in_thread(_open_scratch, stack, base, self._writer)

                async def add(file: ManifestFile) -> None:
                    if await in_thread(_link_earlier, (earlier or {}).get(file.digest), scratch / file.path, file):
                        progress(file.size)
                    else:
                        await self._copy(locate(file), scratch / file.path, file, progress)

                await for_each_limited(manifest.files, add)
                await in_thread(_rename_into_place, scratch, folder, manifest, earlier is None)
            finally:
                await in_thread(stack.close)

    async def _copy(self, source: Path, target: Path, file: ManifestFile, progress: Progress) -> None:
        """Copy a file. Raises OSError for this host's disk, ManifestError when its bytes do not match the manifest."""
        digest = hashlib.sha256()
        with contextlib.ExitStack() as stack:
            read = await in_thread(lambda: stack.enter_context(source.open("rb", buffering=0)))
            write = await in_thread(lambda: stack.enter_context(_create_file(target, file)))
            while size := await in_thread(_copy_chunk, read, write, digest):
                progress(size)
                await self._rate_limit.take(size)
            await in_thread(_sync, write)
        if f"sha256:{digest.hexdigest()}" != file.digest:
            raise ManifestError(f"{file.path} is not what its manifest says any more")

    async def _download(self, source: Path, folder: Path, file: ManifestFile, progress: Progress) -> None:
        with contextlib.ExitStack() as stack:
            read = await in_thread(lambda: stack.enter_context(_open_file(source / file.path)))
            part = await in_thread(stack.enter_context, PartialFile(folder, file))
            progress(part.offset)
            await in_thread(_seek, read, part)
            while size := await in_thread(_append_chunk, read, part):
                progress(size)
                await self._rate_limit.take(size)
            if not part.is_correct:  # the interrupted download may have left wrong bytes
                progress(-part.offset)
                part.restart()
                await in_thread(_seek, read, part)
                while size := await in_thread(_append_chunk, read, part):
                    progress(size)
                    await self._rate_limit.take(size)
            await in_thread(part.finish)

    def _find_earlier_files(self, key: FolderKey) -> dict[str, Path]:
        """Return the files of the newest folders of this kind that the run has here, by digest. Blocking."""
        assert self._base is not None
        parent_folder = Path((self._base / kind_path(key, self._layout)).path)
        found: dict[str, Path] = {}
        with _translating_errors():
            whole = sorted(_find_manifests(parent_folder), key=lambda path: path.stat().st_mtime)
            for path in whole[-EARLIER:]:
                with contextlib.suppress(ManifestError):
                    manifest = Manifest.from_bytes(path.read_bytes())
                    found |= {file.digest: path.parent / file.path for file in manifest.files}
        return found


def _address(uri: str) -> Address:
    try:
        address = parse_address(uri)
    except AddressError as error:
        raise StoreRefused(str(error)) from error
    if address.scheme != "file":
        raise StoreRefused(f"{uri} is not a file:// uri")
    return address


def _path(uri: str) -> Path:
    return Path(_address(uri).path)


@contextlib.contextmanager
def _translating_errors() -> Iterator[None]:
    """Translate an OSError of the shared folder, which is the store's failure and not this host's."""
    try:
        yield
    except OSError as error:
        text = f"{error.filename or ''}: {error.strerror}".removeprefix(": ")
        if error.errno in _REFUSED:
            raise StoreRefused(f"{text}; the folder must be writable by the agent's user") from error
        raise StoreUnavailable(text) from error


def _require_base(base: Path) -> None:
    if not base.is_dir():
        raise StoreUnavailable(f"{base} is not there: mount it, or make the folder")


def _clean(base: Path, writer: str) -> None:
    with _translating_errors():
        _require_base(base)
        remove_leftovers(base, writer)


def _base_of(folder: Path, base: Address | None) -> Path:
    """Return where to write a folder that is repaired: on the same file system, at the base if that is known."""
    if base is not None and folder.is_relative_to(base.path):
        return Path(base.path)
    return next((parent for parent in folder.parents if (parent / INDEX_FILE).exists()), folder.parent)


def _is_empty(base: Path) -> bool:
    """Return whether nothing was ever stored below a base that is there."""
    with _translating_errors():
        _require_base(base)
        return not (base / INDEX_FILE).exists()


def _open_scratch(stack: contextlib.ExitStack, base: Path, writer: str) -> Path:
    with _translating_errors():
        _require_base(base)
        return stack.enter_context(scratch_folder(base, writer))


def _read_manifest(folder: Path, digest: str) -> Manifest:
    """Read a folder's manifest. Raises DamagedCopy when it is gone or another one, StoreUnavailable without a store."""
    with _reading(folder):
        data = (folder / MANIFEST_FILE).read_bytes()
    return parse_manifest(data, digest)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    with _translating_errors():
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            if not any((parent / INDEX_FILE).exists() for parent in folder.parents):
                raise StoreUnavailable(f"{folder} is not there, and no store is above it: is it mounted?") from error
            raise DamagedCopy(f"{error.filename} is gone") from error
        except OSError as error:
            if error.errno == errno.EIO:
                raise DamagedCopy(f"{error.filename} cannot be read: {error.strerror}") from error
            raise


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Return whether this very folder is there whole. Raises StoreRefused when the path holds other content."""
    with _translating_errors():
        try:
            found = (folder / MANIFEST_FILE).read_bytes()
        except FileNotFoundError:
            return False
    if found != manifest.to_bytes():
        raise StoreRefused(f"{folder} holds other content, and nothing is ever overwritten")
    return all(is_fetched(folder, file) for file in manifest.files)


def _link_earlier(earlier: Path | None, target: Path, file: ManifestFile) -> bool:
    """Return whether an intact file that is there already could be linked."""
    if earlier is None:
        return False
    try:
        if hash_file(earlier) != (file.digest, file.size) or os.access(earlier, os.X_OK) != file.executable:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(earlier, target)
    except OSError:  # removed meanwhile, or a file system without links: the file is copied
        return False
    return True


@contextlib.contextmanager
def _create_file(target: Path, file: ManifestFile) -> Iterator[IO[bytes]]:
    with _translating_errors():
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if file.executable else 0o644)
    with open(descriptor, "wb", buffering=0) as opened:
        yield opened


def _copy_chunk(read: IO[bytes], write: IO[bytes], digest: hashlib._Hash) -> int:
    """Copy one chunk and return its size; 0 at the end."""
    chunk = read.read(CHUNK)
    digest.update(chunk)
    with _translating_errors():
        view = memoryview(chunk)
        while view:
            view = view[write.write(view) :]
    return len(chunk)


def _sync(write: IO[bytes]) -> None:
    with _translating_errors():
        os.fsync(write.fileno())


def _rename_into_place(scratch: Path, folder: Path, manifest: Manifest, replacing: bool) -> None:
    """Rename a folder into place. It replaces a damaged or incomplete folder; an identical one is left alone."""
    with _translating_errors():
        with (scratch / MANIFEST_FILE).open("xb") as file:
            file.write(manifest.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        for parent, _, _ in os.walk(scratch, topdown=False):
            _sync_folder(Path(parent))
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if replacing or not _is_whole(folder, manifest):
                folder.rename(scratch.with_name("old"))
                scratch.rename(folder)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_file(path: Path) -> IO[bytes]:
    with _reading(path.parent):
        return path.open("rb", buffering=0)


def _seek(read: IO[bytes], part: PartialFile) -> None:
    with _translating_errors():
        read.seek(part.offset)


def _append_chunk(read: IO[bytes], part: PartialFile) -> int:
    with _reading(Path(read.name).parent):
        chunk = read.read(CHUNK)
    part.write(chunk)
    return len(chunk)


def _remove(folder: Path) -> None:
    with _translating_errors():
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise StoreUnavailable(f"{folder} cannot be removed whole")
    with contextlib.suppress(OSError):  # others are still in there
        folder.parent.rmdir()


def _find_manifests(parent_folder: Path) -> Iterator[Path]:
    """Yield the manifests of whole folders, without listing the folders themselves."""
    for parent, folders, names in os.walk(parent_folder):
        if MANIFEST_FILE in names:
            folders.clear()
            yield Path(parent, MANIFEST_FILE)


def _append_to_index(path: Path, line: bytes, uri: str) -> None:
    """Append a line to the index unless it lists this folder. Writers lock it where the file system has locks."""
    with _translating_errors(), path.open("a+b") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = file.read()
        if not is_indexed(lines, uri):
            file.write(missing_line_end(lines) + line)
            file.flush()
            os.fsync(file.fileno())


# Scratch folders, `<base>/.relay/<writer>-<random>`. A process holds a lock on its own, which the kernel or the file
# server releases when the process dies; so a host removes what its own dead processes have left, and nothing else.


@contextlib.contextmanager
def scratch_folder(base: Path, writer: str) -> Iterator[Path]:
    """Yield a new empty folder of this process, and remove it afterwards."""
    with _locked(base / _SCRATCH, _safe_name(writer)) as scratch:
        yield scratch / "folder"


def remove_leftovers(base: Path, writer: str) -> None:
    """Remove the scratch folders that dead processes of this writer have left."""
    for scratch in (base / _SCRATCH).glob(f"{_safe_name(writer)}-*"):
        with contextlib.suppress(
            OSError
        ):  # its process lives; or there are no locks here; or another has just removed it
            descriptor = os.open(scratch / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_scratch(scratch)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _locked(parent: Path, writer: str) -> Iterator[Path]:
    """Yield a new folder and hold its lock; make another when a cleaner removed it before it was locked."""
    while True:
        scratch = parent / f"{writer}-{secrets.token_hex(8)}"
        scratch.mkdir(parents=True)
        descriptor = os.open(scratch / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: then nobody cleans up either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not (scratch / _LOCK).exists():
                continue
            (scratch / "folder").mkdir()
            yield scratch
            return
        finally:
            _remove_scratch(scratch)
            os.close(descriptor)


def _remove_scratch(scratch: Path) -> None:
    """Remove a scratch folder, its lock last, so that a killed removal leaves what a later one can finish."""
    shutil.rmtree(scratch / "folder", ignore_errors=True)
    shutil.rmtree(scratch / "old", ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _safe_name(writer: str) -> str:
    return _UNSAFE.sub("_", writer) or "_"

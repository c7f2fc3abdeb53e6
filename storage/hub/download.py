"""Downloads of folders from the Hub; a file gets its name when it is verified. Blocking, in a worker's process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi

from storage.base import DamagedCopy
from storage.hub.client import translate_errors
from storage.hub.uris import HubUri
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, ManifestFile, digest_bytes, hash_file

STREAMS = 4  #: files in transfer at once
_SCRATCH = ".hub"  #: where the client keeps partial files


class HubDownload:
    """The download of one folder at one commit."""

    def __init__(self, api: HfApi, uri: HubUri, into: Path) -> None:
        self._api = api
        self._uri = uri
        self._into = into

    def fetch_manifest(self, digest: str) -> Manifest:
        """Return the folder's manifest. Raises DamagedCopy when it does not have this digest."""
        body = self._download(MANIFEST_FILE).read_bytes()
        if digest_bytes(body) != digest:
            raise DamagedCopy(f"the manifest at {self._uri} is another one than was registered")
        try:
            manifest = Manifest.from_bytes(body)
        except ManifestError as error:
            raise DamagedCopy(str(error)) from error
        (self._into / MANIFEST_FILE).write_bytes(body)
        return manifest

    def fetch_files(self, manifest: Manifest) -> Iterator[int]:
        """Download the files that are not here yet, and yield the size of each file when it is done."""
        with ThreadPoolExecutor(STREAMS) as pool:
            yield from pool.map(self._fetch_file, manifest.files)
        shutil.rmtree(self._into / _SCRATCH, ignore_errors=True)

    def _fetch_file(self, file: ManifestFile) -> int:
        target = self._into / file.path
        if not (target.is_file() and target.stat().st_size == file.size):  # a file with its name is verified
            downloaded = self._download(file.path)
            if hash_file(downloaded)[0] != file.digest:
                downloaded.unlink()
                downloaded = self._download(file.path, again=True)  # the partial file or the transfer was wrong
            if hash_file(downloaded)[0] != file.digest:
                raise DamagedCopy(f"{file.path} at {self._uri} does not match its digest")
            downloaded.chmod(0o755 if file.executable else 0o644)
            target.parent.mkdir(parents=True, exist_ok=True)
            downloaded.replace(target)
        return file.size

    def _download(self, path: str, *, again: bool = False) -> Path:
        with translate_errors(f"fetching {path} from {self._uri.repo}"):
            return Path(
                self._api.hf_hub_download(
                    self._uri.repo,
                    f"{self._uri.folder}/{path}",
                    revision=self._uri.commit,
                    local_dir=self._into / _SCRATCH,
                    force_download=again,
                )
            )

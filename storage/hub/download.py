"""A folder brought from the Hub: every byte verified before a file has its name. Blocking; in a worker's process."""

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

STREAMS = 4  #: files on their way at once
_SCRATCH = ".hub"  #: where the client keeps what it has of files that are not whole


class HubDownload:
    """One folder at one commit."""

    def __init__(self, api: HfApi, uri: HubUri, into: Path) -> None:
        self._api = api
        self._uri = uri
        self._into = into

    def manifest(self, digest: str) -> Manifest:
        """The manifest with this digest; Damaged when it is another one."""
        body = self._bring(MANIFEST_FILE).read_bytes()
        if digest_bytes(body) != digest:
            raise DamagedCopy(f"the manifest at {self._uri} is another one than was registered")
        try:
            manifest = Manifest.from_bytes(body)
        except ManifestError as error:
            raise DamagedCopy(str(error)) from error
        (self._into / MANIFEST_FILE).write_bytes(body)
        return manifest

    def files(self, manifest: Manifest) -> Iterator[int]:
        """Bring what is not here yet; tells the bytes of each file that is done."""
        with ThreadPoolExecutor(STREAMS) as pool:
            yield from pool.map(self._file, manifest.files)
        shutil.rmtree(self._into / _SCRATCH, ignore_errors=True)

    def _file(self, file: ManifestFile) -> int:
        target = self._into / file.path
        if not (target.is_file() and target.stat().st_size == file.size):  # files get their names when verified
            brought = self._bring(file.path)
            if hash_file(brought)[0] != file.digest:
                brought.unlink()
                brought = self._bring(file.path, again=True)  # half a file of an earlier try, or the way here
            if hash_file(brought)[0] != file.digest:
                raise DamagedCopy(f"{file.path} at {self._uri} does not match its digest")
            brought.chmod(0o755 if file.executable else 0o644)
            target.parent.mkdir(parents=True, exist_ok=True)
            brought.replace(target)
        return file.size

    def _bring(self, path: str, *, again: bool = False) -> Path:
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

"""The jobs of a worker's process, by name: each takes plain values and returns plain values."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from storage.base import DamagedCopy, Progress, StoreRefused
from storage.hub import uris
from storage.hub.client import HubNotFound, create_api, translate_errors
from storage.hub.commit_markers import CommitMarker
from storage.hub.repository import CommitContent, ForeignBranch, PublishedCommit, Repository
from storage.hub.uris import MAIN, HubUri
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, ManifestFile, digest_bytes, hash_file

STREAMS = 4  #: files in transfer at once
_SCRATCH = ".hub"  #: where the client keeps partial files


def _repository(job: Mapping[str, Any]) -> Repository:
    return Repository(create_api(job["timeout"]), job["repo"], private=job.get("private", True))


def _content(job: Mapping[str, Any], texts: Mapping[str, str], within: str = "") -> CommitContent:
    files: dict[str, Path | bytes] = {path: Path(source) for path, source in job["files"].items()}
    return CommitContent(files | {path: text.encode() for path, text in texts.items()}, within)


def commit_folder(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Commit a checkpoint's whole state or a run's result to the run's branch, and tag the commit."""
    repository, mark = _repository(job), CommitMarker(**job["marker"])
    repository.ensure_exists()
    content = _content(job, job["texts"], job["folder"])
    what = f"State of step {mark.step} of" if mark.kind == "state" else "Result of"
    title = f"{what} {mark.run}, attempt {mark.attempt}"
    done = repository.publish(uris.state_branch(mark.run), mark, content, title, job["expected"])
    repository.tag(job["tag"], done.commit)
    return asdict(done)


def publish_model(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Commit a run's model to `main` where the run may write that, else to the run's own branch."""
    repository, mark = _repository(job), CommitMarker(**job["marker"])
    repository.ensure_exists()
    title = f"Step {mark.step} of {mark.run}"
    own = uris.model_branch(mark.run)
    branch, note = repository.model_branch(mark.run, own)
    try:
        content = _content(job, job["texts"][branch])
        done = repository.publish(branch, mark, content, title, job["expected"])
    except ForeignBranch as error:  # another run has just taken main
        if branch != MAIN:
            raise
        content = _content(job, job["texts"][own])
        note, done = str(error), repository.publish(own, mark, content, title, None)
    return asdict(PublishedCommit(done.commit, done.branch, note))


def promote_model(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Copy what is on the run's own branch to `main`, which belongs to the run from then on."""
    try:
        return asdict(_repository(job).promote(job["run"], uris.model_branch(job["run"])))
    except HubNotFound as gone:
        raise StoreRefused(f"{job['repo']} has no branch of {job['run']}'s to promote: {gone}") from gone


def find_newest_model(job: Mapping[str, Any], progress: Progress) -> dict[str, Any] | None:
    """Return the newest published model of a run, or None."""
    repository, run = _repository(job), job["run"]
    for branch in (MAIN, uris.model_branch(run)):
        try:
            commit = repository.history(branch)[0]
        except HubNotFound:
            continue
        if commit.marker is not None and commit.marker.run == run:
            return {"commit": commit.id, "branch": branch, "step": commit.marker.step, "time": commit.time}
    return None


def has_folder(job: Mapping[str, Any], progress: Progress) -> bool:
    """Return whether a tag names the commit and the folder there has this manifest."""
    repository, uri = _repository(job), HubUri.parse(job["uri"])
    try:
        if uri.commit not in repository.tags().values():
            return False
        with translate_errors(f"looking at {uri}"):
            api = create_api(job["timeout"])
            path = api.hf_hub_download(uri.repo, f"{uri.folder}/{MANIFEST_FILE}", revision=uri.commit)
    except HubNotFound:
        return False
    return bool(digest_bytes(Path(path).read_bytes()) == job["digest"])


def fetch_folder(job: Mapping[str, Any], progress: Progress) -> None:
    """Download a folder at a commit."""
    into = Path(job["into"])
    into.mkdir(parents=True, exist_ok=True)
    download = HubDownload(create_api(job["timeout"]), HubUri.parse(job["uri"]), into)
    for size in download.fetch_files(download.fetch_manifest(job["digest"])):
        progress(size)


def remove_folder(job: Mapping[str, Any], progress: Progress) -> None:
    """Delete a checkpoint's state for good."""
    repository, uri = _repository(job), HubUri.parse(job["uri"])
    try:
        mark = repository.history(uri.commit)[0].marker
    except HubNotFound:
        return
    if mark is not None and mark.kind in ("state", "output"):
        repository.remove_folder(uri.commit, uri.folder, uris.state_branch(mark.run))


def remove_unregistered(job: Mapping[str, Any], progress: Progress) -> int:
    """Delete what earlier attempts at a run have stored and no row names; return how many folders."""
    repository, mark = _repository(job), CommitMarker(**job["marker"])
    try:
        return repository.remove_unregistered(
            mark, job["known"], partial(uris.folder_of_tag, mark.run), uris.state_branch(mark.run)
        )
    except HubNotFound:  # there is no repository yet
        return 0


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


JOBS: Mapping[str, Callable[[Mapping[str, Any], Progress], Any]] = {
    job.__name__: job
    for job in (
        commit_folder,
        publish_model,
        promote_model,
        find_newest_model,
        has_folder,
        fetch_folder,
        remove_folder,
        remove_unregistered,
    )
}

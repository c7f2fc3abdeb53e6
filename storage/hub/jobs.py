"""The jobs of a worker's process, by name: each takes plain values and returns plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from storage.base import Progress, StoreRefused
from storage.hub import uris
from storage.hub.client import HubNotFound, create_api, translate_errors
from storage.hub.commit_markers import CommitMarker
from storage.hub.download import HubDownload
from storage.hub.repository import CommitContent, ForeignBranch, PublishedCommit, Repository
from storage.hub.uris import MAIN
from storage.manifest import MANIFEST_FILE, digest_bytes


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
    repository, uri = _repository(job), uris.HubUri.parse(job["uri"])
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
    download = HubDownload(create_api(job["timeout"]), uris.HubUri.parse(job["uri"]), into)
    for size in download.fetch_files(download.fetch_manifest(job["digest"])):
        progress(size)


def remove_folder(job: Mapping[str, Any], progress: Progress) -> None:
    """Delete a checkpoint's state for good."""
    repository, uri = _repository(job), uris.HubUri.parse(job["uri"])
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

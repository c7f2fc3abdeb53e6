"""Whether a registry and a repository on the Hub agree, and the repository with itself."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from storage.hub.commit_markers import CommitMarker
from storage.hub.uris import HubUri
from storage.manifest import MANIFEST_FILE, Manifest, digest_bytes
from tests.hub.repository import Commit, File, Lfs, Repository


def find_differences(repository: Repository, registry: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong, in words; nothing when every registered checkpoint is there whole, once, and no other is."""
    return [
        *_doubled(repository),
        *(wrong for uri, digest in registry for wrong in _registered(repository, HubUri.parse(uri), digest)),
        *_leaked(repository, {HubUri.parse(uri).commit for uri, _ in registry}),
        *_halves(repository),
    ]


def _doubled(repository: Repository) -> Iterator[str]:
    marks = Counter(CommitMarker.parse(commit.message) for commit in repository.commits.values())
    for mark, count in marks.items():
        if mark is not None and mark.kind != "free" and count > 1:
            yield f"{count} commits of {mark}"


def _registered(repository: Repository, uri: HubUri, digest: str) -> Iterator[str]:
    commit = repository.commits.get(uri.commit)
    if commit is None:
        yield f"{uri} is registered and not there"
        return
    if uri.commit not in repository.tags.values():
        yield f"{uri} is registered and no tag keeps it"
    yield from (f"{uri}: {wrong}" for wrong in _wrong(repository, commit, uri.folder, digest))


def _wrong(repository: Repository, commit: Commit, folder: str, digest: str | None = None) -> Iterator[str]:
    """Of one checkpoint's folder."""
    files = {
        path.removeprefix(f"{folder}/"): file for path, file in commit.files.items() if path.startswith(f"{folder}/")
    }
    body = files.pop(MANIFEST_FILE, b"")
    if not isinstance(body, bytes) or not body:
        yield "it has no manifest"
        return
    if digest is not None and digest_bytes(body) != digest:
        yield "its manifest is another one"
    manifest = Manifest.from_bytes(body)
    if set(files) != {file.path for file in manifest.files}:
        yield f"it holds {sorted(files)}"
        return
    for file in manifest.files:
        if _digest(repository, files[file.path]) != file.digest.removeprefix("sha256:"):
            yield f"{file.path} is not what the manifest says"


def _digest(repository: Repository, file: File) -> str:
    if isinstance(file, Lfs):
        return hashlib.sha256(repository.large.get(file.digest, b"gone")).hexdigest()
    return hashlib.sha256(file).hexdigest()


def _leaked(repository: Repository, registered: set[str]) -> Iterator[str]:
    for name, commit in repository.tags.items():
        if commit not in registered:
            yield f"{name} is there and not registered"
    named = [repository.commits[commit] for commit in repository.names.values()]
    used = {file.digest for commit in named for file in commit.files.values() if isinstance(file, Lfs)}
    for digest in repository.large.keys() - used:
        yield f"the large file {digest[:8]} is used by nothing"


def _halves(repository: Repository) -> Iterator[str]:
    """Of what a branch shows."""
    for branch, head in repository.branches.items():
        mark = CommitMarker.parse(repository.commits[head].message)
        if mark is not None and mark.kind == "state":
            files: Mapping[str, File] = repository.commits[head].files
            folders = {path.partition("/")[0] for path in files} - {".gitattributes"}
            if len(folders) != 1:
                yield f"{branch} holds {sorted(folders)}"
            for folder in folders:
                yield from (f"{branch}: {wrong}" for wrong in _wrong(repository, repository.commits[head], folder))

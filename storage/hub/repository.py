"""A model repository on the Hub, and Relay's commits to it. Blocking, in a worker's process.

Nothing is ever overwritten: a commit names its parent, and a branch that somebody else has moved is left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, paginate, parse_datetime

from storage.base import StoreRefused, StoreUnavailable
from storage.hub.client import HubNotFound, ParentOutdated, ReplyLost, translate_errors
from storage.hub.commit_markers import AlreadyCommitted, BranchMoved, CommitMarker, HubCommit, MayCommit, decide_commit
from storage.hub.uris import MAIN

_KEPT_FILES = (".gitattributes",)  #: the Hub's own file
_LOOK_BACK = 200  #: commits of a history that are read
_TRIES = 5  #: tries of one commit, while its branch is moved by our own commits or replies are lost


Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True, slots=True)
class PublishedCommit:
    """A commit that has been made on the Hub."""

    commit: str
    branch: str
    note: str = ""  #: for the user


@dataclass(frozen=True, slots=True)
class CommitContent:
    """The files that a commit is to hold, and no others, by their paths in the repository."""

    files: Mapping[str, Path | bytes]
    within: str = ""  #: the folder of one node's part of a checkpoint; those of the step's other nodes are kept


class ForeignBranch(StoreRefused):
    """Somebody else has moved the branch, which is left alone."""


class Repository:
    """A repository. Its methods raise StoreUnavailable, StoreRefused, HubNotFound, and OSError for this host's disk."""

    def __init__(self, api: HfApi, name: str, *, private: bool = True) -> None:
        self._api = api
        self._name = name
        self._private = private

    def ensure_exists(self) -> None:
        """Create the repository unless it exists."""
        try:
            with translate_errors(f"looking for {self._name}"):
                self._api.repo_info(self._name)
        except (HubNotFound, StoreRefused):
            with translate_errors(f"creating {self._name}"):
                self._api.create_repo(self._name, private=self._private, exist_ok=True)

    def publish(
        self, branch: str, mark: CommitMarker, content: CommitContent, title: str, expected: str | None
    ) -> PublishedCommit:
        """Make one commit, or return the one with this marker; a missing branch is created from `main`."""
        fresh = self._ensure_branch(branch)
        uploaded = False
        for _ in range(_TRIES):
            match decide_commit(mark, self.history(branch), expected, fresh):
                case AlreadyCommitted(commit):
                    return PublishedCommit(commit, branch)
                case BranchMoved() as moved:
                    raise self._refuse_moved(branch, mark, moved)
                case MayCommit(parent):
                    operations = self._make_operations(parent, content)
                    if not uploaded:
                        self._upload(branch, operations)
                        uploaded = True
                    try:
                        return PublishedCommit(self._commit(branch, parent, operations, mark, title), branch)
                    except (ParentOutdated, ReplyLost) as error:  # another was faster, or the reply was lost
                        unsure = error
        raise StoreUnavailable(f"{self._name}: {branch} keeps moving or its answers are lost ({unsure})")

    def model_branch(self, run: str, own: str) -> tuple[str, str]:
        """Return the branch for the run's model, and the reason when that is not `main`."""
        head = self.history(MAIN)[0]
        if head.marker is not None and head.marker.run == run:
            return MAIN, ""
        if head.marker is not None:
            return own, f"main of {self._name} belongs to run {head.marker.run}"
        if not self._has_files(head.id):
            return MAIN, ""
        return own, f"main of {self._name} was last written by {head.description} and not by this run"

    def history(self, revision: str) -> list[HubCommit]:
        """Return the newest commits of a revision, newest first."""
        api = self._api
        url = f"{api.endpoint}/api/models/{self._name}/commits/{_quote(revision)}"
        with translate_errors(f"reading the history of {self._name}"):
            items = itertools.islice(paginate(url, params={}, headers=build_hf_headers(token=api.token)), _LOOK_BACK)
            return [_parse_commit(item) for item in items]

    def tag(self, name: str, commit: str) -> None:
        with translate_errors(f"tagging {self._name}"):
            self._api.create_tag(self._name, tag=name, revision=commit, exist_ok=True)

    def tags(self) -> dict[str, str]:
        """Return the commits by tag."""
        with translate_errors(f"reading the tags of {self._name}"):
            return {ref.name: ref.target_commit for ref in self._api.list_repo_refs(self._name).tags}

    def branches(self) -> dict[str, str]:
        """Return the head of each branch."""
        with translate_errors(f"reading the branches of {self._name}"):
            return {ref.name: ref.target_commit for ref in self._api.list_repo_refs(self._name).branches}

    def entries(self, revision: str) -> dict[str, RepoFile]:
        """Return the files of a commit by path."""
        with translate_errors(f"listing {self._name} at {revision[:8]}"):
            tree = self._api.list_repo_tree(self._name, recursive=True, revision=revision)
            return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def promote(self, run: str, own: str) -> PublishedCommit:
        """Copy the run's model to `main`, whoever's that was; what was there stays in its history."""
        newest = self.history(own)[0]
        if newest.marker is None or newest.marker.run != run:
            raise ForeignBranch(
                f"{own} of {self._name} was moved by {newest.description}; it is not this run's any more"
            )
        parent = self.branches()[MAIN]
        files = [path for path in self._paths(newest.id) if path not in _KEPT_FILES]
        readme = self._read("README.md", newest.id).replace(f', revision="{own}"'.encode(), b"")
        gone = set(self._paths(parent)) - set(files) - set(_KEPT_FILES)
        operations: list[Operation] = [CommitOperationDelete(path) for path in sorted(gone)]
        operations += [CommitOperationCopy(path, path, src_revision=newest.id) for path in files if path != "README.md"]
        operations.append(CommitOperationAdd("README.md", readme))
        try:
            return PublishedCommit(self._commit(MAIN, parent, operations, newest.marker, f"Promote {run}"), MAIN)
        except ParentOutdated as error:
            raise StoreUnavailable(f"main of {self._name} moves just now: {error}") from error

    def _read(self, path: str, commit: str) -> bytes:
        with translate_errors(f"reading {path} of {self._name}"):
            return Path(self._api.hf_hub_download(self._name, path, revision=commit)).read_bytes()

    def remove_folder(self, commit: str, folder: str, branch: str) -> None:
        """Delete a folder's commit: its tag first, its large files last, unless another commit uses them.

        The branch is squashed, which moves its head; commits that are tagged stay as they are.
        """
        try:
            deleted = self._list_large_files(commit, folder)
        except HubNotFound:  # an interrupted deletion got this far
            return
        self._remove_references(commit, folder, branch)
        kept = {*self.branches().values(), *self.tags().values()}
        self._delete_large_files(deleted - {digest for each in kept for digest in self._list_large_files(each)})

    def remove_unregistered(
        self, ours: CommitMarker, known: Collection[str], folder_of: Callable[[str], str], branch: str
    ) -> int:
        """Delete the tagged commits of earlier attempts that the registry does not know, and return how many."""
        removed = 0
        for tag, commit in self.tags().items():
            folder = folder_of(tag)
            if folder and commit not in known:
                mark = self.history(commit)[0].marker
                if mark is not None and mark.run == ours.run and mark.attempt < ours.attempt:
                    self.remove_folder(commit, folder, branch)
                    removed += 1
        return removed

    def _remove_references(self, commit: str, folder: str, branch: str) -> None:
        """Delete the tags of a commit, and take it out of its branch's history."""
        for name, target in self.tags().items():
            if target == commit:
                self._delete_tag(name)
        branches = self.branches()
        if branch not in branches:
            return
        try:
            self._squash(branch, branches[branch], folder)
        except ParentOutdated as error:
            raise StoreUnavailable(f"{branch} of {self._name} moves just now: {error}") from error

    # In steps

    def _ensure_branch(self, branch: str) -> str | None:
        """Create a missing branch. Return the commit at which a branch starts, or None when it has commits already."""
        branches = self.branches()
        if MAIN not in branches:
            raise StoreRefused(f"{self._name} has no branch main")
        if branch == MAIN:
            return None if self._has_files(branches[MAIN]) else branches[MAIN]
        if branch in branches:
            return branches[branch] if branches[branch] == branches[MAIN] else None
        with translate_errors(f"creating the branch {branch} of {self._name}"):
            self._api.create_branch(self._name, branch=branch, revision=branches[MAIN], exist_ok=True)
        return branches[MAIN]

    def _refuse_moved(self, branch: str, ours: CommitMarker, moved: BranchMoved) -> StoreRefused:
        theirs = moved.by.marker
        if not moved.newer or theirs is None:
            return ForeignBranch(
                f"{branch} of {self._name} was moved by {moved.by.description}; what is there is not overwritten"
            )
        what = f"at step {theirs.step} of this run" if theirs.lease == ours.lease else "a later attempt's"
        return StoreRefused(f"{branch} of {self._name} is {what} by now: {moved.by.description}")

    def _make_operations(self, parent: str, content: CommitContent) -> list[Operation]:
        added = [CommitOperationAdd(path, source) for path, source in content.files.items()]
        step = content.within.partition("-node")[0]
        kept = {path for path in self._paths(parent) if content.within and path.startswith(f"{step}-node")}
        kept = {path for path in kept if not path.startswith(f"{content.within}/")}
        gone = set(self._paths(parent)) - set(content.files) - set(_KEPT_FILES) - kept
        return [*added, *(CommitOperationDelete(path) for path in sorted(gone))]

    def _upload(self, branch: str, operations: Iterable[Operation]) -> None:
        additions = [each for each in operations if isinstance(each, CommitOperationAdd)]
        with translate_errors(f"uploading to {self._name}"):
            self._api.preupload_lfs_files(self._name, additions, revision=branch, free_memory=False)

    def _commit(
        self,
        branch: str,
        parent: str,
        operations: Sequence[Operation],
        mark: CommitMarker,
        title: str,
    ) -> str:
        with translate_errors(f"committing to {branch} of {self._name}"):
            done = self._api.create_commit(
                self._name,
                operations,
                commit_message=title,
                commit_description=mark.trailer,
                revision=branch,
                parent_commit=parent,
            )
        return str(done.oid)

    def _has_files(self, commit: str) -> bool:
        """Return whether a commit has any files but the Hub's own."""
        return bool(set(self._paths(commit)) - set(_KEPT_FILES))

    def _paths(self, commit: str) -> list[str]:
        return list(self.entries(commit))

    def _list_large_files(self, commit: str, folder: str = "") -> set[str]:
        """Return the digests of a commit's LFS files."""
        entries = self.entries(commit).values()
        return {
            each.lfs.sha256 for each in entries if each.lfs and each.path.startswith(f"{folder}/" if folder else "")
        }

    def _delete_tag(self, name: str) -> None:
        try:
            with translate_errors(f"removing a tag of {self._name}"):
                self._api.delete_tag(self._name, tag=name)
        except HubNotFound:
            return

    def _squash(self, branch: str, head: str, folder: str) -> None:
        newest = self.history(branch)[0].marker
        if newest is None:
            raise StoreRefused(f"{branch} of {self._name} was moved by somebody else; it is left as it is")
        mark = CommitMarker("free", newest.run, newest.attempt, newest.lease, newest.step)
        if any(path.startswith(f"{folder}/") for path in self._paths(head)):
            gone = [CommitOperationDelete(f"{folder}/", is_folder=True)]
            self._commit(branch, head, gone, mark, f"Remove {folder}")
        with translate_errors(f"squashing {branch} of {self._name}"):
            message = f"Squash\n\n{mark.trailer}"
            self._api.super_squash_history(self._name, branch=branch, commit_message=message)

    def _delete_large_files(self, digests: set[str]) -> None:
        if not digests:
            return
        with translate_errors(f"freeing space of {self._name}"):
            files = [file for file in self._api.list_lfs_files(self._name) if file.file_oid in digests]
            # Rewriting the history would give other names to the commits that the registry knows.
            self._api.permanently_delete_lfs_files(self._name, files, rewrite_history=False)


def _parse_commit(item: Mapping[str, object]) -> HubCommit:
    authors = item.get("authors")
    author = authors[0].get("user", "") if isinstance(authors, list) and authors else ""
    message = f"{item.get('title', '')}\n{item.get('message', '')}"
    time = parse_datetime(str(item["date"])).timestamp()
    return HubCommit(str(item["id"]), str(item.get("title", "")), str(author), CommitMarker.parse(message), time)


def _quote(revision: str) -> str:
    return revision.replace("%", "%25").replace("/", "%2F")

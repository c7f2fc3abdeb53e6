"""What a Hub keeps: commits in a chain, branches and tags that name them, and large files apart from both."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

Kind = Literal["models", "datasets"]
LARGE = (".safetensors", ".bin", ".parquet", ".pt", ".png")  #: files kept in LFS


@dataclass(frozen=True, slots=True)
class Lfs:
    """A large file as a commit has it: its digest, not its bytes."""

    digest: str  #: SHA-256, hex
    size: int


File = bytes | Lfs


class StaleParent(Exception):
    """The branch has moved since."""


class Unknown(Exception):
    """There is no such thing here; the argument is the error code that the Hub gives."""


class Exists(Exception):
    """It is there already."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of all files."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    time: datetime
    files: Mapping[str, File]


@dataclass
class Repository:
    """One model or data set. Calls of several threads come one after another."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  #: LFS files by digest
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def names(self) -> dict[str, str]:
        """Commits by the names that point at them."""
        return {**self.tags, **self.branches}

    def resolve(self, revision: str) -> Commit:
        """The commit of a name or a hash."""
        commit = self.commits.get(self.names.get(revision, revision))
        if commit is None:
            raise Unknown("RevisionNotFound")
        return commit

    def commit(
        self, files: Mapping[str, bytes], name: str = "main", *, title: str = "by hand", author: str = ""
    ) -> str:
        """Point the branch `name` at a new commit of exactly these files; its hash."""
        kept: dict[str, File] = {path: self._kept(path, body) for path, body in files.items()}
        return self.append(name, kept, title=title, author=author or "someone").id

    def _kept(self, path: str, body: bytes) -> File:
        if not path.endswith(LARGE):
            return body
        digest = hashlib.sha256(body).hexdigest()
        self.large[digest] = body
        return Lfs(digest, len(body))

    def append(
        self, branch: str, files: Mapping[str, File], *, title: str, author: str, message: str = "", parent: str = ""
    ) -> Commit:
        """A new commit on a branch; StaleParent when `parent` is named and is not the branch's head."""
        with self.lock:
            head = self.branches.get(branch)
            if parent and parent != head:
                raise StaleParent
            if lost := [
                path for path, file in files.items() if isinstance(file, Lfs) and file.digest not in self.large
            ]:
                raise Unknown(f"LFS objects of {', '.join(lost)} are missing")
            return self._store(branch, head, files, title, message, author)

    def _store(
        self, branch: str, parent: str | None, files: Mapping[str, File], title: str, message: str, author: str
    ) -> Commit:
        name = hashlib.sha1(f"{len(self.commits)} {branch} {title}".encode()).hexdigest()
        commit = Commit(name, parent, title, message, author, datetime.now(UTC), dict(files))
        self.commits[name] = commit
        self.branches[branch] = name
        return commit

    def squash(self, branch: str, title: str, author: str) -> None:
        """The branch becomes one commit with the files of its head."""
        with self.lock:
            head = self.resolve(self.branches.get(branch, ""))
            first, _, rest = title.partition("\n")
            self._store(branch, None, head.files, first, rest.strip(), author)

    def branch(self, name: str, start: str) -> None:
        with self.lock:
            if name in self.branches:
                raise Exists
            self.branches[name] = self.resolve(start).id

    def tag(self, name: str, revision: str) -> None:
        with self.lock:
            if name in self.tags:
                raise Exists
            self.tags[name] = self.resolve(revision).id

    def untag(self, name: str) -> None:
        with self.lock:
            if self.tags.pop(name, None) is None:
                raise Unknown("RevisionNotFound")

    def history(self, revision: str) -> Iterator[Commit]:
        """Newest first."""
        commit: Commit | None = self.resolve(revision)
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None

    def body(self, file: File) -> bytes:
        """Its bytes; Unknown once a large file has been deleted for good."""
        if isinstance(file, bytes):
            return file
        if file.digest not in self.large:
            raise Unknown("EntryNotFound")
        return self.large[file.digest]

    def folder(self, revision: str) -> dict[str, bytes]:
        """All files of a commit with their bytes."""
        return {path: self.body(file) for path, file in self.resolve(revision).files.items()}


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files, to be committed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

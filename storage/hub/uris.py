"""Names on the Hub: the branches and tags of a run, and `hf://` uris. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from storage.base import FolderKey, StoreRefused

_URI = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<commit>[0-9a-f]{40})/(?P<folder>.+)")
MAIN = "main"  #: the branch that users load by default


@dataclass(frozen=True, slots=True)
class HubUri:
    """A folder at a commit: `hf://owner/repo@<commit>/<folder>`."""

    repo: str
    commit: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> HubUri:
        """Read a uri. Raises StoreRefused for other texts."""
        if not (match := _URI.fullmatch(text)):
            raise StoreRefused(f"{text} is not a folder on the Hub; write hf://owner/repo@<commit>/<folder>")
        return cls(**match.groupdict())

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit}/{self.folder}"


def model_branch(run: str) -> str:
    """Return the branch of a run's model where `main` belongs to another run.

    It is not `relay/<run>`, because in git no branch's name may be the beginning of another's path.
    """
    return f"relay/{_ref(run)}/model"


def state_branch(run: str) -> str:
    """Return the branch of a run's trainer state."""
    return f"relay/{_ref(run)}/state"


def hub_folder(key: FolderKey) -> str:
    """Return a folder's name in the repository, which no other attempt has (S4)."""
    if key.step is None:
        return f"output-{key.lease}"
    node = f"-node{key.node}" if key.nodes > 1 else ""
    return f"step_{key.step:08d}-{key.lease}{node}"


def hub_tag(key: FolderKey) -> str:
    """Return the tag that keeps a folder's commit when its branch is squashed."""
    return f"relay/{_ref(key.run)}/{hub_folder(key)}"


def folder_of_tag(run: str, tag: str) -> str:
    """Return the folder whose commit a tag of this run keeps; empty for other tags."""
    prefix = f"relay/{_ref(run)}/"
    return tag.removeprefix(prefix) if tag.startswith(prefix) else ""


def _ref(run: str) -> str:
    """Return a run's name as git accepts it: without `..`, and not ending in a dot or in `.lock`."""
    if ".." not in run and not run.endswith((".", ".lock")):
        return run
    return f"{run.replace('.', '-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"

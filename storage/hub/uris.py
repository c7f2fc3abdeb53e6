"""Names on the Hub: branches and tags of a run, and what an `hf://` uri says. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from storage.base import FolderKey, StoreRefused

_URI = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<commit>[0-9a-f]{40})/(?P<folder>.+)")
MAIN = "main"  #: what people load


@dataclass(frozen=True, slots=True)
class HubUri:
    """A folder at a commit: `hf://owner/repo@<commit>/<folder>`."""

    repo: str
    commit: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> HubUri:
        """StoreRefused when it is none."""
        if not (match := _URI.fullmatch(text)):
            raise StoreRefused(f"{text} is no place on the Hub; one reads hf://owner/repo@<commit>/<folder>")
        return cls(**match.groupdict())

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit}/{self.folder}"


def model_branch(run: str) -> str:
    """Where a run's model goes that `main` does not belong to. (`relay/<run>` alone cannot be: git has no branch whose
    name is the beginning of another's path.)"""
    return f"relay/{_ref(run)}/model"


def state_branch(run: str) -> str:
    """Where a run's trainer state goes."""
    return f"relay/{_ref(run)}/state"


def hub_folder(key: FolderKey) -> str:
    """A checkpoint's folder: never that of another attempt (S4)."""
    if key.step is None:
        return f"output-{key.lease}"
    node = f"-node{key.node}" if key.nodes > 1 else ""
    return f"step_{key.step:08d}-{key.lease}{node}"


def hub_tag(key: FolderKey) -> str:
    """What keeps a checkpoint's commit when its branch is squashed."""
    return f"relay/{_ref(key.run)}/{hub_folder(key)}"


def folder_of_tag(run: str, tag: str) -> str:
    """The folder whose commit a tag of this run's keeps; empty for other tags."""
    prefix = f"relay/{_ref(run)}/"
    return tag.removeprefix(prefix) if tag.startswith(prefix) else ""


def _ref(run: str) -> str:
    """A run's name as git takes it: without `..`, and not ending in a dot or in `.lock`."""
    if ".." not in run and not run.endswith((".", ".lock")):
        return run
    return f"{run.replace('.', '-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"

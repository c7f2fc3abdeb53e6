"""Checkpoints to keep on a Hub, and who keeps them there."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from storage.base import FolderKey
from storage.hub.store import CommitRateLimit, HubStore
from storage.hub.worker import HubWorker
from storage.manifest import Manifest, ManifestFile, describe_folder
from tests.hub.server import Hub

TOKEN = "hf_canary"  #: to be found nowhere but at the Hub
REPO = "me/sums"
LEASES = ("a" * 32, "b" * 32)


def place(step: int, attempt: int = 1, run: str = "r") -> FolderKey:
    return FolderKey(run=run, framework="hf", attempt=attempt, lease=LEASES[attempt - 1], step=step)


def checkpoint(folder: Path, step: int, *, size: int = 3000, seed: int = 0) -> Manifest:
    """A folder like a trainer's checkpoint: a file that never changes, one that always does, small ones."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "model.safetensors": random.Random(seed).randbytes(size),
        "optimizer.pt": random.Random(f"{seed} {step}").randbytes(size),
        "trainer_state.json": b'{"step": %d}' % step,
        "deep/empty.txt": b"",
    }
    for name, body in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(body)
    return describe_folder(folder, step=step)


@dataclass
class Keeper:
    """A host that keeps checkpoints on a Hub."""

    hub: Hub
    folder: Path
    timeout: float = 5.0
    more: Mapping[str, str] = field(default_factory=dict)  #: of its environment
    python: str = os.environ.get("RELAY_TEST_HUB_PYTHON", sys.executable)  #: with another release of the client

    def worker(self) -> HubWorker:
        repository = Path(__file__).resolve().parents[2]
        path = {"PYTHONPATH": f"{repository}:{repository / 'proto'}", "PATH": os.environ["PATH"]}
        environment = path | self.hub.environ(self.folder / "cache") | {"HF_TOKEN": TOKEN} | dict(self.more)
        return HubWorker(self.python, environment, self.timeout)

    def store(self, repo: str = REPO) -> HubStore:
        return HubStore(self.worker(), repo, commit_limit=CommitRateLimit(), now=monotonic)

    async def keep(
        self, store: HubStore, step: int, attempt: int = 1, *, seed: int = 0, run: str = "r"
    ) -> tuple[str, str]:
        """Make and keep one; its uri and digest."""
        folder = self.folder / f"{run}-{step}-{attempt}"
        manifest = checkpoint(folder, step, seed=seed)

        def where(file: ManifestFile) -> Path:
            return folder / file.path

        return await store.put(place(step, attempt, run), manifest, where), manifest.digest

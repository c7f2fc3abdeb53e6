"""`hf://`: a run's checkpoints and its result on the run's branch of a model repository, one tagged commit each."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

from storage.address import HUB_REPO
from storage.base import FolderKey, LocateFile, Progress, StoreRefused, ignore_progress
from storage.hub.commit_markers import CommitMarker
from storage.hub.uris import HubUri, hub_folder, hub_tag
from storage.hub.worker import HubWorker
from storage.manifest import MANIFEST_FILE, Manifest

COMMITS = 100  #: per hour; the Hub refuses at about 128, and other hosts may commit to the same repository
HOUR = 3600.0


@dataclass(slots=True)
class CommitRateLimit:
    """A limit on this host's commits to each repository in an hour. `now` is a clock in seconds."""

    limit: int = COMMITS
    _made: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def delay(self, repo: str, now: float) -> float:
        """Return the seconds until one more commit is within the limit."""
        made = self._made[repo]
        while made and made[0] <= now - HOUR:
            made.popleft()
        return made[-self.limit] + HOUR - now if len(made) >= self.limit else 0.0

    def record(self, repo: str, now: float) -> None:
        """Count a commit that was made now."""
        self._made[repo].append(now)


class HubStore:
    """A store in which each commit holds one checkpoint and deletes the previous one's files, kept under a tag.

    A folder is found by its commit, which the registry names. One upload at a time is made, for all runs of a host.
    """

    scheme = "hf"

    def __init__(
        self,
        worker: HubWorker,
        repo: str,
        *,
        commit_limit: CommitRateLimit,
        now: Callable[[], float],
        private: bool = True,
    ) -> None:
        """`repo` is the repository of `put`, empty for none; folders are fetched and removed by their uri."""
        if repo and not HUB_REPO.fullmatch(repo):
            raise StoreRefused(f"{repo!r} is not a repository on the Hub; write owner/name")
        self._worker = worker
        self._repo = repo
        self._commit_limit = commit_limit
        self._now = now
        self._private = private
        self._newest: dict[tuple[str, str], str] = {}  #: our newest commit, by repository and run
        self._writing = asyncio.Lock()

    def at(self, repo: str, *, private: bool = True) -> HubStore:
        """Return a store that keeps folders in this repository and shares this one's lock and limit."""
        store = HubStore(self._worker, repo, commit_limit=self._commit_limit, now=self._now, private=private)
        store._newest, store._writing = self._newest, self._writing
        return store

    async def put(
        self, key: FolderKey, manifest: Manifest, locate: LocateFile, progress: Progress = ignore_progress
    ) -> str:
        """Store a folder as one commit. Waits until the limit on commits allows one more."""
        if key.records:
            raise StoreRefused("the Hub keeps checkpoints and results, but no logs")
        folder = hub_folder(key)
        async with self._writing:
            await asyncio.sleep(self._commit_limit.delay(self._repo, self._now()))
            files = {f"{folder}/{file.path}": str(locate(file)) for file in manifest.files}
            done = await self._put(key, folder, manifest, files)
        progress(manifest.size)
        return str(HubUri(self._repo, done, folder))

    async def _put(self, key: FolderKey, folder: str, manifest: Manifest, files: dict[str, str]) -> str:
        mark = CommitMarker("output" if key.step is None else "state", key.run, key.attempt, key.lease, key.step or 0)
        done = await self._worker.run_job(
            "commit_folder",
            repo=self._repo,
            private=self._private,
            marker=asdict(mark),
            folder=folder,
            files=files,
            texts={f"{folder}/{MANIFEST_FILE}": manifest.to_bytes().decode()},
            tag=hub_tag(key),
            expected=self._newest.get((self._repo, key.run)),
        )
        self._commit_limit.record(self._repo, self._now())
        self._newest[self._repo, key.run] = done["commit"]
        return str(done["commit"])

    async def has(self, uri: str, digest: str) -> bool:
        return bool(await self._worker.run_job("has_folder", repo=HubUri.parse(uri).repo, uri=uri, digest=digest))

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = ignore_progress) -> Manifest:
        await self._worker.run_job(
            "fetch_folder", progress, repo=HubUri.parse(uri).repo, uri=uri, digest=digest, into=str(folder)
        )
        return Manifest.from_bytes(await asyncio.to_thread((folder / MANIFEST_FILE).read_bytes))

    async def remove(self, uri: str) -> None:
        """Delete a folder: its tag, then, after squashing the branch, the large files that no other commit uses."""
        async with self._writing:
            await self._worker.run_job("remove_folder", repo=HubUri.parse(uri).repo, uri=uri)
            self._commit_limit.record(HubUri.parse(uri).repo, self._now())

    async def sweep(self, key: FolderKey, known: Collection[str]) -> int:
        """Delete what earlier attempts at this run have stored and no row names, and return how many folders.

        Their hosts died before they could register them. `known` are the uris that rows name.
        """
        mark = CommitMarker("state", key.run, key.attempt, key.lease, key.step or 0)
        commits = [HubUri.parse(uri).commit for uri in known]
        async with self._writing:
            swept = await self._worker.run_job(
                "remove_unregistered", repo=self._repo, marker=asdict(mark), known=commits
            )
        return int(swept)

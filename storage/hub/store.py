"""`hf://`: a run's checkpoints on its branch of a model repository, one tagged commit for each, and its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path

from storage.address import HUB_REPO
from storage.base import Place, Progress, StoreRefused, Where, untold
from storage.hub.commit_markers import Mark
from storage.hub.commit_rate_limit import Budget
from storage.hub.uris import Uri, folder_of, tag_of
from storage.hub.worker import Worker
from storage.manifest import NAME, Manifest


class HubStore:
    """Each commit holds one checkpoint and deletes the last one's files; earlier ones stay under their tags.

    What it keeps is found by its commit, which the registry names. One at a time writes here, for all runs of a host.
    """

    scheme = "hf"

    def __init__(
        self, worker: Worker, repo: str, *, budget: Budget, now: Callable[[], float], private: bool = True
    ) -> None:
        """`repo` is where `put` keeps; what is fetched or removed is found by its uri."""
        if repo and not HUB_REPO.fullmatch(repo):
            raise StoreRefused(f"{repo!r} is no repository on the Hub; one reads owner/name")
        self._worker = worker
        self._repo = repo
        self._budget = budget
        self._now = now
        self._private = private
        self._newest: dict[tuple[str, str], str] = {}  #: the commit that we made last, by repository and run
        self._writing = asyncio.Lock()

    def at(self, repo: str, *, private: bool = True) -> HubStore:
        """The same host's store, to keep in this repository."""
        store = HubStore(self._worker, repo, budget=self._budget, now=self._now, private=private)
        store._newest, store._writing = self._newest, self._writing
        return store

    async def put(self, place: Place, manifest: Manifest, where: Where, progress: Progress = untold) -> str:
        """Waits until the repository's budget of commits allows one more."""
        if place.room:
            raise StoreRefused("the Hub keeps checkpoints and results, no logs")
        folder = folder_of(place)
        async with self._writing:
            await asyncio.sleep(self._budget.wait(self._repo, self._now()))
            files = {f"{folder}/{file.path}": str(where(file)) for file in manifest.files}
            done = await self._put(place, folder, manifest, files)
        progress(manifest.size)
        return str(Uri(self._repo, done, folder))

    async def _put(self, place: Place, folder: str, manifest: Manifest, files: dict[str, str]) -> str:
        mark = Mark("output" if place.step is None else "state", place.run, place.attempt, place.lease, place.step or 0)
        done = await self._worker.do(
            "keep",
            repo=self._repo,
            private=self._private,
            mark=asdict(mark),
            folder=folder,
            files=files,
            texts={f"{folder}/{NAME}": manifest.to_bytes().decode()},
            tag=tag_of(place),
            expected=self._newest.get((self._repo, place.run)),
        )
        self._budget.spent(self._repo, self._now())
        self._newest[self._repo, place.run] = done["commit"]
        return str(done["commit"])

    async def has(self, uri: str, digest: str) -> bool:
        return bool(await self._worker.do("has", repo=Uri.parse(uri).repo, uri=uri, digest=digest))

    async def fetch(self, uri: str, digest: str, folder: Path, progress: Progress = untold) -> Manifest:
        await self._worker.do("fetch", progress, repo=Uri.parse(uri).repo, uri=uri, digest=digest, into=str(folder))
        return Manifest.from_bytes(await asyncio.to_thread((folder / NAME).read_bytes))

    async def remove(self, uri: str) -> None:
        """Frees the space: the tag goes, the branch is squashed, large files that nothing else uses are deleted."""
        async with self._writing:
            await self._worker.do("free", repo=Uri.parse(uri).repo, uri=uri)
            self._budget.spent(Uri.parse(uri).repo, self._now())

    async def sweep(self, place: Place, known: Collection[str]) -> int:
        """Free what earlier attempts at this run have kept here and no row names: their hosts died before they could
        say so. `known` are the uris that rows name; how many were freed.
        """
        mark = Mark("state", place.run, place.attempt, place.lease, place.step or 0)
        commits = [Uri.parse(uri).commit for uri in known]
        async with self._writing:
            swept = await self._worker.do("sweep", repo=self._repo, mark=asdict(mark), known=commits)
        return int(swept)

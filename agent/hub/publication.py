"""A run's model on the Hub while it trains: only the newest, at an interval, at the end and when the host leaves.

    registered checkpoint → (due?) → loadable files, card, relay.json → one commit → hf/last_synced.json

A commit is made by a process that can be killed (`storage.hub`), so training, the lease and the agent's end wait for
nothing here. A failure is recorded once in the run's events, and retried with the newest checkpoint of that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Never

from agent.checkpoints.publisher import LatestSlot
from agent.events.journal import Journal
from relay.backoff import Backoff
from runfile import HubSection
from storage.base import DamagedCopy, StoreRefused, StoreUnavailable
from storage.hub.commit_markers import CommitMarker
from storage.hub.store import CommitRateLimit
from storage.hub.uris import MAIN, model_branch
from storage.hub.worker import HubWorker
from storage.manifest import ManifestError

AWAY_LIMIT = 300.0  #: seconds that a Hub which is away may hold up an attempt's end


@dataclass(frozen=True, slots=True)
class PublishableModel:
    """A checkpoint or a result that can be published."""

    step: int
    folder: Path
    digest: str = ""  #: digest of a checkpoint's manifest
    metrics: dict[str, float] = field(default_factory=dict)
    final: bool = False


@dataclass(frozen=True, slots=True)
class CommitContent:
    """The content of one commit."""

    files: dict[str, str]  #: local paths by paths in the repository
    texts: Callable[[str], dict[str, str]]  #: texts by paths in the repository, for a branch, which a card names


class ModelPublication:
    """The publication of one attempt's model. `run` as a task beside the trainer; `finish` when that has ended."""

    def __init__(
        self,
        hub: HubSection,
        *,
        run: str,
        mark: Callable[[PublishableModel], CommitMarker],
        pack: Callable[[PublishableModel], Awaitable[CommitContent]],
        worker: HubWorker,
        commit_limit: CommitRateLimit,
        journal: Journal,
        record_sync: Callable[[dict[str, Any]], Awaitable[None]],
        backoff: Backoff,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._hub = hub
        self._run = run
        self._mark = mark
        self._pack = pack
        self._worker = worker
        self._commit_limit = commit_limit
        self._journal = journal
        self._record_sync = record_sync
        self._backoff = backoff
        self._now = now
        self._wall = wall
        self._models: LatestSlot[PublishableModel] = LatestSlot()
        self._newest: PublishableModel | None = None
        self._published: int | None = None  #: step of the newest published model, once that is known
        self._due = 0.0  #: time of the next publication, on `now`
        self._commit: str | None = None
        self._lock = asyncio.Lock()
        self._recorded: set[str] = set()

    def offer(self, model: PublishableModel) -> None:
        """Queue a newer checkpoint."""
        self._newest = model
        self._models.put(model)

    @property
    def needed(self) -> set[int]:
        """Return the steps whose folders are being read."""
        working = [model.step for model in (self._models.working, self._models.waiting, self._newest) if model]
        return set(working)

    async def run(self) -> Never:
        """Publish until cancelled."""
        await self._models.wait()
        await self._retry(self._load_published)
        while True:
            await self._models.wait()
            await asyncio.sleep(self._due - self._now())
            with self._models.take() as model:
                if self._is_due(model):
                    await self._retry(lambda: self._publish(self._newest or model))  # a newer one may have come

    async def finish(self, result: PublishableModel | None, limit: float) -> None:
        """Publish the last time, and give up after `limit` seconds, which is recorded."""
        model = result or self._newest
        if model is None or (result is None and model.step == self._published):
            return
        if result is not None and self._newest is not None:
            model = replace(result, step=max(result.step, self._newest.step), metrics=self._newest.metrics)
        try:
            async with asyncio.timeout(limit):
                await self._retry(lambda: self._publish(model), limit=AWAY_LIMIT)
        except TimeoutError:
            await self._journal.record(
                "error", f"step {model.step} is not at {self._hub.repo}: the Hub was given {max(0.0, limit):.0f} s"
            )

    def _is_due(self, model: PublishableModel) -> bool:
        """Return whether an interval in steps has passed; one in time has been waited for."""
        steps = self._hub.every.steps
        return self._published is None or steps is None or model.step - self._published >= steps

    async def _retry(self, work: Callable[[], Awaitable[None]], limit: float = math.inf) -> None:
        """Retry until it is done or refused; raise TimeoutError when it has failed for longer than `limit` seconds."""
        began = self._now()
        while True:
            try:
                await work()
            except StoreUnavailable as away:
                await self._record_once("error", f"publishing to {self._hub.repo} fails, and is tried again: {away}")
                if self._now() - began > limit:
                    raise TimeoutError from away
                await asyncio.sleep(self._backoff.next_pause(away.after))
                continue
            except (StoreRefused, DamagedCopy, ManifestError, OSError) as error:
                await self._record_once("error", f"{self._hub.repo} is not published to: {error}")
                self._schedule_next()
            else:
                if self._backoff.reset():
                    self._recorded.clear()
                    await self._journal.record("info", f"publishing to {self._hub.repo} works again")
            return

    async def _record_once(self, level: str, text: str) -> None:
        if text not in self._recorded:
            self._recorded.add(text)
            await self._journal.record(level, text)

    async def _load_published(self) -> None:
        """Read what an earlier attempt or agent has published, from which the interval counts."""
        if self._hub.dry_run:
            return
        # Where there is no repository yet, publishing reports what is wrong.
        with contextlib.suppress(StoreRefused, DamagedCopy):
            found = await self._worker.run_job("find_newest_model", repo=self._hub.repo, run=self._run)
            if found is not None:
                self._published, self._commit = found["step"], found["commit"]
                self._schedule_next(ago=max(0.0, self._wall() - found["time"]))

    def _schedule_next(self, ago: float = 0.0) -> None:
        """Schedule the next publication one interval after this moment, or after one that was so many seconds ago."""
        self._due = self._now() + (self._hub.every.seconds or 0.0) - ago

    async def _publish(self, model: PublishableModel) -> None:
        async with self._lock:
            if model.final or model.step != self._published:
                await self._publish_now(model)

    async def _publish_now(self, model: PublishableModel) -> None:
        done: dict[str, Any] = {"commit": None, "branch": None, "note": ""}
        if not self._hub.dry_run:
            done = await self._send(model)
            self._commit = done["commit"]
        self._published = model.step
        self._schedule_next()
        time = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")
        known = {"commit": done["commit"], "repo": self._hub.repo, "branch": done["branch"]}
        await self._record_sync({"time": time, "step": model.step, **known, "dry_run": self._hub.dry_run})
        if done["note"]:
            await self._record_once("warning", done["note"])
        if done["commit"]:
            where = f"{self._hub.repo} ({done['branch']}, commit {done['commit'][:8]})"
            await self._journal.record("info", f"step {model.step} is published at {where}")

    async def _send(self, model: PublishableModel) -> dict[str, Any]:
        parcel = await self._pack(model)
        await asyncio.sleep(self._commit_limit.delay(self._hub.repo, self._now()))
        done: dict[str, Any] = await self._worker.run_job(
            "publish_model",
            repo=self._hub.repo,
            private=self._hub.private,
            marker=asdict(self._mark(model)),
            files=parcel.files,
            texts={branch: parcel.texts(branch) for branch in (MAIN, model_branch(self._run))},
            expected=self._commit,
        )
        self._commit_limit.record(self._hub.repo, self._now())
        return done

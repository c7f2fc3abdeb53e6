"""What one attempt has to do with the Hub, from its run file and the agent's settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Never

from agent.attempt.launch import allowed
from agent.attempt.setup import Means
from agent.checkpoints.publisher import Registered
from agent.coordinator_client import CALL_TIMEOUT, insist
from agent.events.journal import Journal
from agent.folder import AttemptFolder
from agent.hub.context import HubMeans
from agent.hub.facts import Facts
from agent.hub.packing import Packing, mark_of
from agent.hub.publication import Model, Publication
from agent.hub.retry import Patience
from agent.hub.state import StateCopies, sweep
from agent.stores.publishing import hub_of, store_of
from agent.wire import Assignment
from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2
from runfile import Hub, RunFile
from storage.hub.store import HubStore

#: Seconds that publishing may hold up the end of an attempt: with a result; that stops or fails; whose host leaves.
RESULT, STOPPING, LEAVING = 3600.0, 60.0, 30.0


@dataclass(frozen=True, slots=True)
class OnTheHub:
    """One attempt's; does nothing where the run is not to be published."""

    publication: Publication | None = None
    state: StateCopies | None = None
    folder: AttemptFolder | None = None
    sweep: Callable[[], Coroutine[Any, Any, None]] | None = None

    def registered(self, registered: Registered) -> None:
        """There is a newer checkpoint."""
        saved = registered.sealed.saved
        if self.publication is not None and self.folder is not None:
            digest = registered.sealed.manifest.digest
            self.publication.registered(Model(saved.step, self.folder.checkpoint(saved.step), digest, saved.metrics))
        if self.state is not None:
            self.state.registered(registered)

    @property
    def needed(self) -> set[int]:
        """Steps whose folders must stay on this host."""
        return {step for part in (self.publication, self.state) if part is not None for step in part.needed}

    async def run(self) -> Never:
        """Until cancelled. Raises LeaseLost."""
        async with asyncio.TaskGroup() as group:
            if self.sweep is not None:
                group.create_task(self.sweep())
            for part in (self.publication, self.state):
                if part is not None:
                    group.create_task(part.run())
            await asyncio.Event().wait()
        raise AssertionError("never reached")

    async def finish(self, result: Model | None, limit: float) -> None:
        """The last of it, within so many seconds. Copies of state that are on their way are waited for, too, but not
        for long: other stores' copies must do."""
        began = asyncio.get_running_loop().time()
        if self.state is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(limit, STOPPING)):
                    await self.state.settled()
        if self.publication is not None:
            await self.publication.finish(result, limit - (asyncio.get_running_loop().time() - began))


def on_the_hub(means: Means, assignment: Assignment, run: RunFile, folder: AttemptFolder, journal: Journal) -> OnTheHub:
    """What node 0 publishes; the run file's section wins over the agent's own settings."""
    if means.hub is None or assignment.node != 0:
        return OnTheHub()
    hub = run.hub or means.hub.defaults
    publication = _publication(means, means.hub, assignment, run, folder, journal, hub) if hub else None
    if run.checkpoint.store.startswith(f"{HubStore.scheme}://"):  # there are no copies to be made of what is there
        store = store_of(run, means.stores, writer="", pace=means.pace)
        assert isinstance(store, HubStore)
        return OnTheHub(publication, None, folder, _sweeping(store, means, means.hub, assignment, run))
    if hub is None or not hub.state or hub.dry_run:
        return OnTheHub(publication, None, folder)
    store = hub_of(means.stores).at(hub.repo, private=hub.private)
    state = _state(store, means, assignment, run, folder, journal)
    return OnTheHub(publication, state, folder, _sweeping(store, means, means.hub, assignment, run))


def _sweeping(
    store: HubStore, means: Means, using: HubMeans, assignment: Assignment, run: RunFile
) -> Callable[[], Coroutine[Any, Any, None]]:
    known = partial(using.known, assignment.message.run, means.metadata)
    return partial(sweep, store, assignment.place(run, 0), known)


def _publication(
    means: Means,
    using: HubMeans,
    assignment: Assignment,
    run: RunFile,
    folder: AttemptFolder,
    journal: Journal,
    hub: Hub,
) -> Publication:
    packing = Packing(
        hub=hub,
        run=run,
        assignment=assignment,
        folder=folder,
        known=Facts(using.runs, means.metadata, assignment, folder.events),
        journal=journal,
        python=means.python,
        environment=allowed(means.environment),
    )

    async def synced(facts: Mapping[str, Any]) -> None:
        await asyncio.to_thread(means.run_folder(assignment.run_id).synced, facts)

    return Publication(
        hub,
        run=assignment.run_id,
        mark=partial(mark_of, assignment),
        pack=packing,
        worker=using.worker,
        budget=using.budget,
        journal=journal,
        synced=synced,
        patience=Patience(Random()),
        now=means.now,
        wall=means.wall,
    )


def _state(
    store: HubStore, means: Means, assignment: Assignment, run: RunFile, folder: AttemptFolder, journal: Journal
) -> StateCopies:
    async def add(registered: Registered, scheme: str, uri: str) -> None:
        copy = runs_pb2.Copy(store=scheme, uri=uri)
        request = pb.AddCopyRequest(lease=assignment.lease, checkpoint=registered.name, node=assignment.node, copy=copy)
        await insist(means.contact, lambda: means.stub.AddCopy(request, metadata=means.metadata, timeout=CALL_TIMEOUT))

    return StateCopies(
        store,
        folder,
        place=partial(assignment.place, run),
        every=run.checkpoint.every,
        add=add,
        journal=journal,
        patience=Patience(Random()),
    )


def result_of(folder: AttemptFolder, step: int | None) -> Model | None:
    """The run's result as a model; None when it has none. Blocking."""
    if step is None or not folder.output.is_dir() or not any(folder.output.iterdir()):
        return None
    return Model(step, folder.output, final=True)

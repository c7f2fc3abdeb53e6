"""From a run file and the agent's settings to what one attempt publishes on the Hub."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from random import Random
from typing import Any

from agent.attempt.launch import filter_environment
from agent.checkpoints.publisher import RegisteredCheckpoint
from agent.context import AttemptContext, HubContext
from agent.coordinator_client import CALL_TIMEOUT, call_with_retry
from agent.events.journal import Journal
from agent.folder import AttemptFolder
from agent.hub.facts import RunHistory
from agent.hub.outputs import HubOutputs
from agent.hub.packing import Packer, make_mark
from agent.hub.publication import ModelPublication
from agent.hub.state import StateCopier, remove_unregistered
from agent.stores.publishing import get_hub_store, open_run_store
from agent.wire import Assignment
from relay.backoff import Backoff
from relay.v1 import agents_pb2 as pb
from relay.v1 import runs_pb2
from runfile import HubSection, RunFile
from storage.hub.store import HubStore

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0  #: seconds; bounds of the pauses between retries while the Hub is away


def open_hub_outputs(
    context: AttemptContext, assignment: Assignment, run: RunFile, folder: AttemptFolder, journal: Journal
) -> HubOutputs:
    """Return what node 0 publishes; the run file's `hub` section takes precedence over the agent's settings."""
    if context.hub is None or assignment.node != 0:
        return HubOutputs()
    hub = run.hub or context.hub.defaults
    facts = RunHistory(context.hub.runs, context.metadata, assignment, folder.events)
    publication = _publication(context, context.hub, assignment, run, folder, journal, hub, facts) if hub else None
    if run.checkpoint.store.startswith(f"{HubStore.scheme}://"):  # there are no copies to be made of what is there
        store = open_run_store(run, context.stores, writer="", rate_limit=context.rate_limit)
        assert isinstance(store, HubStore)
        return HubOutputs(publication, None, folder, _sweeping(store, assignment, run, facts))
    if hub is None or not hub.state or hub.dry_run:
        return HubOutputs(publication, None, folder)
    store = get_hub_store(context.stores).at(hub.repo, private=hub.private)
    state = _state(store, context, assignment, run, folder, journal)
    return HubOutputs(publication, state, folder, _sweeping(store, assignment, run, facts))


def _sweeping(
    store: HubStore, assignment: Assignment, run: RunFile, facts: RunHistory
) -> Callable[[], Coroutine[Any, Any, None]]:
    return partial(remove_unregistered, store, assignment.place(run, 0), facts.registered_uris)


def _publication(
    context: AttemptContext,
    using: HubContext,
    assignment: Assignment,
    run: RunFile,
    folder: AttemptFolder,
    journal: Journal,
    hub: HubSection,
    facts: RunHistory,
) -> ModelPublication:
    packing = Packer(
        hub=hub,
        run=run,
        assignment=assignment,
        folder=folder,
        history=facts,
        journal=journal,
        python=context.python,
        environment=filter_environment(context.environment),
    )

    async def synced(state: Mapping[str, Any]) -> None:
        await asyncio.to_thread(context.run_folder(assignment.run_id).write_sync_state, state)

    return ModelPublication(
        hub,
        run=assignment.run_id,
        mark=partial(make_mark, assignment),
        pack=packing,
        worker=using.worker,
        commit_limit=using.commit_limit,
        journal=journal,
        record_sync=synced,
        backoff=_backoff(),
        now=context.now,
        wall=context.wall,
    )


def _state(
    store: HubStore,
    context: AttemptContext,
    assignment: Assignment,
    run: RunFile,
    folder: AttemptFolder,
    journal: Journal,
) -> StateCopier:
    async def add(registered: RegisteredCheckpoint, scheme: str, uri: str) -> None:
        copy = runs_pb2.Copy(store=scheme, uri=uri)
        request = pb.AddCopyRequest(lease=assignment.lease, checkpoint=registered.name, node=assignment.node, copy=copy)
        await call_with_retry(
            context.contact, lambda: context.stub.AddCopy(request, metadata=context.metadata, timeout=CALL_TIMEOUT)
        )

    return StateCopier(
        store,
        folder,
        place=partial(assignment.place, run),
        every=run.checkpoint.every,
        add=add,
        journal=journal,
        backoff=_backoff(),
    )


def _backoff() -> Backoff:
    return Backoff(FIRST_PAUSE, LONGEST_PAUSE, Random())

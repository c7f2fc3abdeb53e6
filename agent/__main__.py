"""`relay-agent`: wires the agent together and turns signals into exit requests.

SIGTERM or SIGINT: leave (save, publish, release, exit 0); a second one hurries. SIGUSR2 or `relay-agent detach`: only
the agent ends, and its trainers continue. Exit code 78: settings, secret or deployment are wrong, and a restart cannot
help. An agent with trainers never exits so, since its coordinator may be wrong for a while and right again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import IO

from agent import wire
from agent.attempt.launch import filter_environment
from agent.capability import detect
from agent.checkpoints.removing import CheckpointRemover
from agent.cleanup import OpenAttempts
from agent.context import AttemptContext, HubContext
from agent.coordinator_client import Contact, Coordinator
from agent.events.inotify import WriteWatcher
from agent.events.spool import Spool
from agent.host_metrics import HostMetrics
from agent.session import AgentIdentity, Session, grpc_dial
from agent.settings import DETACH, AgentSettings, read_command
from agent.shim.processes import boot_id, boottime
from agent.shim_client.shims import SpareShim, prepare_runtime_dir
from agent.stores.blobs import BlobClient
from agent.stores.input_cache import InputCache
from agent.stores.relay import RelayStore
from agent.supervisor import ExitRequest, Supervisor
from relay import logs
from relay.errors import DeploymentForeign, RelayError, Unauthenticated
from relay.settings import MISCONFIGURED, SettingsError
from relay.v1 import agents_pb2 as pb
from relay.v1 import agents_pb2_grpc, runs_pb2_grpc
from runfile import RunFile
from storage.base import Store
from storage.exit import end_process
from storage.hub.store import CommitRateLimit, HubStore
from storage.hub.worker import HubWorker
from storage.stores import StoresByScheme
from storage.throttling import RateLimit

log = logs.get_logger("agent")

THREADS = 32  #: for files: a volume that hangs blocks some of them, and the others must suffice
HEARTBEAT = 5.0  #: seconds, until a welcome says otherwise


def main() -> None:
    """Run `relay-agent` as the command line says."""
    logs.configure()
    try:
        command, settings = read_command(sys.argv[1:], os.environ)
        code = detach(settings) if command == DETACH else run(settings)
    except (SettingsError, PermissionError, ValueError) as error:
        print(f"relay-agent: {error}", file=sys.stderr)
        code = MISCONFIGURED
    end_process(code)


def detach(settings: AgentSettings) -> int:
    """Ask the agent of this runtime folder to end without its trainers, and return when it has."""
    try:
        with settings.lock.open("r") as lock:
            if try_lock(lock):  # the pid in it is nobody's, or by now somebody else's
                raise ProcessLookupError
            with open(os.pidfd_open(int(lock.read())), "rb") as agent:
                signal.pidfd_send_signal(agent.fileno(), signal.SIGUSR2)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except (OSError, ValueError):
        print(f"relay-agent: no agent runs with --runtime-dir {settings.runtime_dir}", file=sys.stderr)
        return 1
    return 0


def try_lock(lock: IO[str]) -> bool:
    """Lock the file, and return False when another process has it locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run(settings: AgentSettings) -> int:
    """Run the agent until a signal or a request ends it, and return its exit code."""
    prepare_runtime_dir(settings.runtime_dir)
    for option, folder in (("--data-dir", settings.data_dir), ("--root", settings.root)):
        _made_writable(option, folder)
    RunFile.model_rebuild()  # now, and not while heartbeats wait for the first run
    code = 0
    with hold_lock(settings.lock, "--runtime-dir"), hold_lock(settings.data_dir / "agent.lock", "--data-dir"):
        try:
            asyncio.run(serve(settings))
        except* (DeploymentForeign, Unauthenticated) as refused:
            log.error("agent refused", reason=refused.exceptions[0])
            code = MISCONFIGURED
        except* RelayError as ended:  # replaced by another instance; or an agent that is too old for what it is told
            log.error("agent ended", reason=ended.exceptions[0])
            code = 1
    return code


def _made_writable(option: str, folder: Path) -> None:
    """Raise SettingsError when the folder of this option cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{option} {folder}: {error.strerror}; name a folder that can be made") from error
    if not os.access(folder, os.W_OK | os.X_OK):  # nothing is tried out: a full disk is no reason not to start
        raise SettingsError(f"{option} {folder}: it cannot be written; name another folder")


@contextlib.contextmanager
def hold_lock(lock: Path, option: str) -> Iterator[None]:
    """Lock this file while the context lasts; raise SettingsError when another agent has it locked."""
    with lock.open("a+") as file:
        if not try_lock(file):
            raise SettingsError(f"another agent runs with {option} {lock.parent}")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def serve(settings: AgentSettings) -> None:
    """Build all parts, and run them until a signal or a request ends the agent."""
    exit_requests = watch_signals()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    identity = AgentIdentity(secrets.token_hex(16), boot_id(), settings.data_dir / "deployment")
    coordinator = Coordinator(settings.coordinator, settings.secret, deployment=identity.deployment)
    contact = Contact(boottime)
    found = await asyncio.to_thread(detect, settings.root, settings.python)
    capability = wire.render_capability(found, settings.slots)
    hello = pb.Hello(agent=settings.resource_name, capability=capability, labels=settings.labels)
    vitals = HostMetrics(settings.root)
    async with open_context(settings, coordinator, contact, gpus=bool(found.gpus)) as context:
        supervisor = Supervisor(
            context,
            hello,
            lambda: context.transfers.attach_to(vitals.latest),
            disconnect_limit=settings.disconnect_limit,
        )
        session = Session(supervisor, identity, contact, dial=grpc_dial(coordinator), now=boottime, random=Random())
        log.info(
            "agent started",
            agent=settings.name,
            pid=os.getpid(),
            coordinator=settings.coordinator,
            root=settings.root,
        )
        await supervisor.run(
            (session.run, context.spool.run, context.remover.run, vitals.run), exit_requests, settings.leaving_budget
        )
    log.info("agent ended")


@contextlib.asynccontextmanager
async def open_context(
    settings: AgentSettings, coordinator: Coordinator, contact: Contact, *, gpus: bool
) -> AsyncIterator[AttemptContext]:
    """Open what attempts work with. Calls and artifacts have a connection each."""
    async with (
        coordinator.dial() as calls,
        coordinator.dial() as transfers,
        SpareShim(settings.runtime_dir) as shims,
    ):
        rate_limit = RateLimit(settings.transfer_limit)
        blobs = BlobClient(coordinator, transfers, contact, rate_limit)
        begun = OpenAttempts(settings.data_dir / "attempts")
        stub = agents_pb2_grpc.AgentsStub(calls)
        hub = hub_context(settings, runs_pb2_grpc.RunsStub(transfers))
        special: dict[str, Store] = {
            "relay": RelayStore(blobs),
            "hf": HubStore(hub.worker, "", commit_limit=hub.commit_limit, now=boottime),
        }
        stores = StoresByScheme(special, writer=settings.name, rate_limit=rate_limit)
        yield AttemptContext(
            agent=settings.resource_name,
            root=settings.root,
            runtime_dir=settings.runtime_dir,
            python=settings.python,
            gpus=gpus,
            orphan_limit=settings.orphan_limit,
            environment=dict(os.environ),
            stub=stub,
            coordinator=coordinator,
            contact=contact,
            spool=Spool(coordinator, contact, heartbeat=HEARTBEAT, watcher=WriteWatcher()),
            blobs=blobs,
            stores=stores,
            rate_limit=rate_limit,
            cache=InputCache(settings.data_dir / "cache", settings.cache_limit),
            open_attempts=begun,
            remover=CheckpointRemover(settings.resource_name, settings.root, stub, coordinator, contact, stores, begun),
            shims=shims,
            now=boottime,
            wall=time.time,
            hub=hub,
        )


def hub_context(settings: AgentSettings, runs: runs_pb2_grpc.RunsStub) -> HubContext:
    """Return what attempts publish with: only the worker's processes have the token."""
    token = {name: value for name, value in os.environ.items() if name == "HF_TOKEN"}
    return HubContext(
        HubWorker(settings.python, filter_environment(os.environ) | token), CommitRateLimit(), runs, settings.hub
    )


def watch_signals() -> asyncio.Queue[ExitRequest]:
    """Handle the signals that end an agent, and return the queue that their exit requests come in."""
    exit_requests: asyncio.Queue[ExitRequest] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, exit_requests.put_nowait, ExitRequest.LEAVE)
    loop.add_signal_handler(signal.SIGUSR2, exit_requests.put_nowait, ExitRequest.DETACH)
    return exit_requests


if __name__ == "__main__":
    main()

"""What the containers start, for real: the entrypoint with the real agent, against a coordinator with a secret."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.config import Config
from relay.v1.fleet_pb2 import Agent, ListAgentsRequest

if TYPE_CHECKING:
    from tests.conftest import RunningCoordinator

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRET = "of all agents and clients"
MISCONFIGURED = 78
PATIENCE = 90  # seconds


@pytest.fixture
def coordinator_config(coordinator_config: Config) -> Config:
    return replace(coordinator_config, secret=SECRET)


@asynccontextmanager
async def container(folder: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent as its container starts it, with nothing else in its environment."""
    inherited = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RELAY_L1_ROOT": str(folder / "root"),
        "RELAY_AGENT_DATA": str(folder / "data"),
        "RELAY_RUNTIME_DIR": str(folder / "run"),
        "WORKER_ID": "Pod-7",
    }
    process = await asyncio.create_subprocess_exec(
        "bash", str(DEPLOY / "agent-entrypoint.sh"), env=inherited | environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_with(text: str, process: asyncio.subprocess.Process) -> str:
    """The agent's first line that says so."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        async for line in process.stderr:
            if text in line.decode():
                return line.decode()
    pytest.fail(f"the agent ended and never said {text!r}")


async def exit_code(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE):
        return await process.wait()


async def test_the_agent_registers_and_leaves_on_sigterm(
    coordinator: "RunningCoordinator", short_tmp_path: Path
) -> None:
    url = f"http://{coordinator.address}/"
    async with container(short_tmp_path, COMMANDER_URL=url, RELAY_SHARED_SECRET=SECRET) as process:
        await line_with("session opened", process)
        bearer = (("authorization", f"Bearer {SECRET}"),)
        listed = await coordinator.fleet.ListAgents(ListAgentsRequest(), metadata=bearer)
        assert [(agent.name, agent.state) for agent in listed.agents] == [("agents/pod-7", Agent.READY)]
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0


async def test_a_wrong_secret_is_exit_78(coordinator: "RunningCoordinator", short_tmp_path: Path) -> None:
    environment = {"RELAY_COORDINATOR": coordinator.address, "RELAY_SHARED_SECRET": "another"}
    async with container(short_tmp_path, **environment) as process:
        assert await exit_code(process) == MISCONFIGURED


async def test_a_coordinator_that_is_away_is_waited_for(short_tmp_path: Path) -> None:
    async with container(short_tmp_path, COMMANDER_URL="http://127.0.0.1:1") as process:
        await line_with("session broken", process)
        process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0


async def test_the_health_check_needs_no_secret(coordinator: "RunningCoordinator") -> None:
    check = await asyncio.create_subprocess_exec(sys.executable, str(DEPLOY / "healthcheck.py"), coordinator.address)
    assert await exit_code(check) == 0

"""The coordinator as a process: how it starts, hands over and goes, and what it leaves behind."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from relay.v1 import fleet_pb2, runs_pb2
from relay.v1.fleet_pb2_grpc import FleetStub
from relay.v1.runs_pb2_grpc import RunsStub

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coordinator", *arguments]


@contextmanager
def _serving(data_dir: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address as it printed it."""
    command = _command("serve", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir), *more)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True
    ) as run:
        try:
            assert run.stdout
            line = run.stdout.readline()
            found = re.fullmatch(r"listening on (127\.0\.0\.1:\d+) \(deployment [0-9a-f-]{36}\)\n", line)
            assert found, line
            yield run, found[1]
        finally:
            run.kill()


def _server_of(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])


async def _deployment(address: str) -> str:
    async with aio.insecure_channel(address) as channel:
        return (await FleetStub(channel).GetDeployment(fleet_pb2.GetDeploymentRequest(), timeout=90)).deployment_id


async def test_it_says_where_it_listens_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with _serving(tmp_path) as (process, address):
        assert (tmp_path / "address").read_text() == f"{address}\n"
        server, deployment = _server_of(tmp_path), await _deployment(address)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)
    with _serving(tmp_path) as (_, address):
        assert await _deployment(address) == deployment


async def test_killed_outright_its_database_ends_and_the_next_start_is_like_any_other(tmp_path: Path) -> None:
    with _serving(tmp_path) as (process, address):
        server, deployment = _server_of(tmp_path), await _deployment(address)
        process.kill()
    with _serving(tmp_path) as (_, address):
        assert _server_of(tmp_path) != server
        assert await _deployment(address) == deployment


async def test_a_second_replica_by_url_and_one_by_folder(tmp_path: Path) -> None:
    with _serving(tmp_path / "first") as (first, one):
        url = (tmp_path / "first" / "database-url").read_text().strip()
        assert await asyncio.to_thread(_deployment_by_url, url) == await _deployment(one)
        with (
            _serving(tmp_path / "second", "--database-url", url) as (_, two),
            _serving(tmp_path / "first") as (_, three),
        ):
            assert await _deployment(two) == await _deployment(three) == await _deployment(one)
            first.send_signal(signal.SIGTERM)
            await asyncio.to_thread(first.wait, 20)
            assert await _deployment(three)  # the server lasts as long as one of the folder's users


def _deployment_by_url(url: str) -> str:
    async def ask() -> str:
        connection = await asyncpg.connect(url)
        try:
            return str(await connection.fetchval("SELECT deployment_id FROM deployment"))
        finally:
            await connection.close()

    return asyncio.run(ask())


async def test_a_shutdown_tells_its_streams(tmp_path: Path, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO runs (id, state, wanted, spec, request_digest, step) VALUES ('r', 'paused', 'paused', '{}', '', 1)"
    )
    await connection.close()
    with _serving(tmp_path, "--database-url", database_url) as (process, address):
        async with aio.insecure_channel(address) as channel:
            watch = RunsStub(channel).WatchRun(runs_pb2.WatchRunRequest(name="runs/r"), timeout=90)
            await watch.read()  # its progress
            process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as ended:
                while await watch.read() is not aio.EOF:
                    pass
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in (ended.value.details() or "")
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_health_follows_the_database(tmp_path: Path) -> None:
    with _serving(tmp_path) as (_, address):
        async with aio.insecure_channel(address) as channel, asyncio.timeout(60):
            health: Any = health_pb2_grpc.HealthStub(channel)  # its types are those of the blocking stub
            watch = health.Watch(health_pb2.HealthCheckRequest(service="relay.v1.Runs"))
            while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
                pass
            os.kill(_server_of(tmp_path), signal.SIGINT)
            while (await watch.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--listen", "0.0.0.0:0"], "RELAY_SHARED_SECRET"),
        (["serve", "--database-url", "postgresql://nobody@127.0.0.1:1/none"], "database"),
    ],
)
def test_what_cannot_work_is_one_message_and_no_traceback(tmp_path: Path, arguments: list[str], words: str) -> None:
    command = _command(*arguments, "--data-dir", str(tmp_path))
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True, timeout=60)
    assert done.returncode != 0
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_database_of_another_version_is_named_and_migrate_mends_it(tmp_path: Path, empty_database_url: str) -> None:
    def run(verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = _command(verb, "--database-url", empty_database_url, "--data-dir", str(tmp_path), *more)
        return subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True, timeout=60)

    refused = run("serve", "--listen", "127.0.0.1:0")
    assert refused.returncode == 1 and "run `relay-coordinator migrate`" in refused.stderr
    assert run("migrate").returncode == 0
    with _serving(tmp_path, "--database-url", empty_database_url):
        pass


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        command = _command("serve", "--listen", listen, "--data-dir", str(tmp_path))
        ended = subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True, timeout=60)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"--listen {listen}: it cannot be listened on" in ended.stderr.splitlines()[-1]

"""The embedded Postgres: shared while it is used, gone when it is not, in whatever way its users ended."""

import os
import pwd
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from coordinator.database import postgres
from coordinator.database.postgres_programs import ProcessIdentity, choose_process_identity

USER = """
import sys
from pathlib import Path
from coordinator.database import postgres
with postgres.running(postgres.prepare(Path(sys.argv[1]), durable=False)):
    print("running", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _user(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that uses the server; killed outright at the end, if it still lives."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", USER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stdout.readline() == b"running\n"
        try:
            yield process
        finally:
            process.kill()


def _cluster(folder: Path, identity: ProcessIdentity | None = None) -> postgres.Cluster:
    return postgres.prepare(folder, durable=False, identity=identity)


def _server(cluster: postgres.Cluster) -> int:
    return int((cluster.data / "postmaster.pid").read_text().splitlines()[0])


def _ended(pid: int) -> None:
    """Wait for a process that is not our child; a zombie has ended too."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 20)[0], f"process {pid} did not end"
    finally:
        os.close(descriptor)


def _keeper(server: int) -> int:
    return int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])


async def _ask(cluster: postgres.Cluster, query: str) -> object:
    connection = await asyncpg.connect(cluster.url())
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_data_stays_and_the_socket_is_private(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    async with postgres.embedded(cluster):
        await _ask(cluster, "CREATE TABLE kept (n int)")
        assert cluster.socket_folder.stat().st_mode & 0o077 == 0
        assert await _ask(cluster, "SHOW listen_addresses") == ""
        server = _server(cluster)
    _ended(server)
    async with postgres.embedded(cluster):
        assert await _ask(cluster, "SELECT count(*) FROM kept") == 0


def test_two_on_one_folder_share_a_server_that_lasts_as_long_as_either(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    with _user(tmp_path):
        server = _server(cluster)
        with postgres.running(cluster):
            assert _server(cluster) == server
        assert cluster.status() == "ready"
    _ended(server)


def test_no_server_outlives_a_user_that_was_killed(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    with _user(tmp_path) as user:
        server = _server(cluster)
        user.kill()
        _ended(server)
    with postgres.running(cluster):
        assert _server(cluster) != server


def test_a_server_that_lost_its_keeper_is_replaced(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    with _user(tmp_path) as user:
        server = _server(cluster)
        keeper = _keeper(server)
        os.kill(keeper, signal.SIGKILL)
        _ended(keeper)  # on a busy machine it takes its time, and lives until then
        user.kill()
        user.wait()
    assert Path(f"/proc/{server}").exists()
    with postgres.running(cluster):
        _ended(server)
        assert _server(cluster) != server


def test_a_stale_pid_that_belongs_to_somebody_else_now_is_no_server(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    with postgres.running(cluster):
        lines = (cluster.data / "postmaster.pid").read_text().splitlines()
    stale = "\n".join([str(os.getppid()), *lines[1:]])
    (cluster.data / "postmaster.pid").write_text(stale + "\n")
    with postgres.running(cluster):
        assert cluster.status() == "ready"


def test_half_an_initialised_folder_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "PG_VERSION").write_text("18\n")
    cluster = _cluster(tmp_path)
    with postgres.running(cluster):
        assert cluster.status() == "ready" and not (tmp_path / "data.new").exists()


def test_data_of_another_version_is_said_to_be_that(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    with postgres.running(cluster):
        pass
    (cluster.data / "PG_VERSION").write_text("9\n")
    with pytest.raises(postgres.PostgresError, match="made by Postgres 9"), postgres.running(cluster):
        pass


def test_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path / ("x" * 60) / ("y" * 60))
    assert len(os.fsencode(cluster.socket_folder / postgres.SOCKET_NAME)) <= postgres.SOCKET_PATH_MAX
    with postgres.running(cluster):
        assert cluster.status() == "ready"


def test_root_has_a_way(tmp_path: Path) -> None:
    identity = choose_process_identity()
    assert identity.owner == os.geteuid() or identity.uid is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_as_another_user_where_namespaces_are_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a test is closed to other users, so the data go elsewhere, as they would from /root."""
    nobody = pwd.getpwnam("nobody")
    elsewhere = Path("/var/tmp") / f"relay-test-{os.getpid()}"
    monkeypatch.setattr("coordinator.database.postgres_programs.FALLBACK_ROOT", elsewhere)
    try:
        cluster = _cluster(tmp_path, ProcessIdentity(owner=nobody.pw_uid, uid=nobody.pw_uid, gid=nobody.pw_gid))
        assert cluster.folder.is_relative_to(elsewhere)
        with postgres.running(cluster):
            assert Path(f"/proc/{_server(cluster)}").stat().st_uid == nobody.pw_uid
    finally:
        subprocess.run(["rm", "-rf", str(elsewhere)], check=True)

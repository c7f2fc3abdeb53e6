"""Configuration: what cannot work is said before anything is started."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coordinator.__main__ import app
from coordinator.config import Config, ConfigError, is_loopback, read_secret


@pytest.mark.parametrize("listen", ["0.0.0.0:7070", "[::]:0", "10.0.0.1:1", "coordinator.example:7070"])
def test_off_loopback_a_secret_is_needed(listen: str) -> None:
    with pytest.raises(ConfigError, match="RELAY_SHARED_SECRET"):
        Config(listen=listen)
    assert "hidden" not in repr(Config(listen=listen, secret="hidden"))


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:7070", "[::1]:7070", "127.0.0.9:7070"])
def test_on_loopback_it_is_not(listen: str) -> None:
    assert is_loopback(Config(listen=listen).address[0])


@pytest.mark.parametrize("listen", ["7070", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70700"])
def test_an_address_is_host_and_port(listen: str) -> None:
    with pytest.raises(ConfigError):
        Config(listen=listen)


def test_the_secret_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-file\n")
    assert read_secret({}) is None
    assert read_secret({"RELAY_SHARED_SECRET": "x"}) == "x"
    assert read_secret({"RELAY_SHARED_SECRET_FILE": str(tmp_path / "secret")}) == "from-file"
    with pytest.raises(ConfigError, match="none"):
        read_secret({"RELAY_SHARED_SECRET_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize("url", ["nonsense", "db.internal/relay", "mysql://u:hidden@db/relay", ""])
def test_what_names_no_database_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="RELAY_DATABASE_URL") as refused:
        Config(database_url=url)
    assert "hidden" not in str(refused.value)


def started(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize("url", ["nonsense", "postgresql://u:hidden@127.0.0.1:1/relay"])
def test_a_database_that_cannot_be_used_is_told_without_a_traceback_or_the_password(command: str, url: str) -> None:
    ended = started(command, "--database-url", url)
    assert ended.exit_code in (1, 2) and "Traceback" not in ended.output and "hidden" not in ended.output
    assert "give postgresql://" in ended.output or "127.0.0.1:1/relay cannot be used: Connection" in ended.output


def test_the_room_for_artifacts_carries_its_unit() -> None:
    ended = started("serve", "--artifact-limit", "lots")
    assert ended.exit_code == 2 and "not a size" in ended.output


def test_the_grace_of_artifacts_carries_its_unit_and_a_store_is_a_bucket() -> None:
    assert "--artifact-grace" in started("serve", "--artifact-grace", "24").stderr
    refused = started("serve", "--artifact-store", "s3://me:secret@bucket/x")
    assert refused.exit_code == 2 and "s3://BUCKET/PREFIX" in refused.stderr and "secret" not in refused.stderr

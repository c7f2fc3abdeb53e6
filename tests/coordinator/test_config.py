"""Configuration: what cannot work is said before anything is started."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.__main__ import run
from coordinator.config import Config, is_loopback
from relay.settings import MISCONFIGURED, SettingsError, read_secret


@pytest.mark.parametrize("listen", ["0.0.0.0:7070", "[::]:0", "10.0.0.1:1", "coordinator.example:7070"])
def test_off_loopback_a_secret_is_needed(listen: str) -> None:
    with pytest.raises(SettingsError, match="RELAY_SHARED_SECRET"):
        Config(listen=listen)
    assert "hidden" not in repr(Config(listen=listen, secret="hidden"))


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:7070", "[::1]:7070", "127.0.0.9:7070"])
def test_on_loopback_it_is_not(listen: str) -> None:
    assert is_loopback(Config(listen=listen).address[0])


@pytest.mark.parametrize("listen", ["7070", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70700"])
def test_an_address_is_host_and_port(listen: str) -> None:
    with pytest.raises(SettingsError):
        Config(listen=listen)


def test_the_secret_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-file\n")
    assert read_secret({}) is None
    assert read_secret({"RELAY_SHARED_SECRET": "x"}) == "x"
    assert read_secret({"RELAY_SHARED_SECRET_FILE": str(tmp_path / "secret")}) == "from-file"
    with pytest.raises(SettingsError, match="none"):
        read_secret({"RELAY_SHARED_SECRET_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize("url", ["nonsense", "db.internal/relay", "mysql://u:hidden@db/relay", ""])
def test_what_names_no_database_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="RELAY_DATABASE_URL") as refused:
        Config(database_url=url)
    assert "hidden" not in str(refused.value)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and its stderr."""

    code: int
    error: str


Start = Callable[..., Ended]


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str]) -> Start:
    """Carries out a command line with an empty environment."""

    def run_coordinator(*arguments: str) -> Ended:
        try:
            code = run(arguments, {})
        except SystemExit as ended:  # the interpreter prints a text and ends with 1
            return Ended(1, str(ended.code))
        return Ended(code, capsys.readouterr().err)

    return run_coordinator


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize("url", ["nonsense", "postgresql://u:hidden@127.0.0.1:1/relay"])
def test_a_database_that_cannot_be_used_is_told_without_a_traceback_or_the_password(
    start: Start, command: str, url: str
) -> None:
    ended = start(command, "--database-url", url)
    assert ended.code in (1, MISCONFIGURED) and "Traceback" not in ended.error and "hidden" not in ended.error
    assert "give postgresql://" in ended.error or "127.0.0.1:1/relay cannot be used: Connection" in ended.error


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--artifact-limit", "lots"], '--artifact-limit: "lots" is not a size'),
        (["--artifact-limit", "0B"], "--artifact-limit: must be positive"),
        (["--artifact-grace", "24"], "--artifact-grace: a duration must have a unit"),
        (["--timing", "slow"], "--timing: give one of default, test, wan"),
        (["--listen", "0.0.0.0:0"], "RELAY_SHARED_SECRET"),
        (["--nothing"], "--nothing"),
        (["--artifact-store", "s3://me:secret@bucket/x"], "s3://BUCKET/PREFIX"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_78(start: Start, arguments: list[str], names: str) -> None:
    refused = start("serve", *arguments)
    assert refused.code == MISCONFIGURED and names in refused.error
    assert refused.error.count("\n") == 1 and "secret@" not in refused.error

"""Settings: from where, and what is refused."""

from pathlib import Path

import pytest

from agent.settings import read_command
from relay.settings import SettingsError


def test_an_option_wins_over_the_environment_over_the_default() -> None:
    environment = {"RELAY_COORDINATOR": "a:1", "RELAY_AGENT_NAME": "env", "RELAY_L1_ROOT": "/env", "HOME": "/home/u"}
    command, made = read_command(["--name", "mine", "--label", "pool=a"], environment)
    assert command == "run" and made.name == "mine" and made.coordinator == "a:1" and made.root == Path("/env")
    assert made.data_dir == Path("/home/u/.local/share/relay/agent") and made.labels == {"pool": "a"}
    assert made.leaving_budget == 30.0 and made.disconnect_limit == 86400.0


def test_transfers_have_no_limit_until_one_is_set() -> None:
    assert read_command(["--name", "a"], {})[1].transfer_limit is None
    assert read_command(["--name", "a", "--transfer-limit", "50MiB/s"], {})[1].transfer_limit == 50 << 20
    assert read_command(["--name", "a"], {"RELAY_TRANSFER_LIMIT": "1GiB"})[1].transfer_limit == 1 << 30


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "Not A Name"],
        ["--coordinator", "nowhere"],
        ["--slots", "0"],
        ["--root", "relative"],
        ["--label", "x"],
        ["--leaving-budget", "30"],
        ["--cache-limit", "many"],
        ["--transfer-limit", "fast"],
        ["--transfer-limit", "0B/s"],
    ],
)
def test_what_cannot_work_is_refused_with_its_option(arguments: list[str]) -> None:
    with pytest.raises(SettingsError):
        read_command(["--name", "a", *arguments], {})


def test_the_secret_comes_from_the_environment_or_a_file_and_is_never_shown(tmp_path: Path) -> None:
    """R6."""
    assert read_command(["--name", "a"], {"RELAY_SHARED_SECRET": "s3"})[1].secret == "s3"
    (tmp_path / "secret").write_text("s4\n")
    made = read_command(["--name", "a"], {"RELAY_SHARED_SECRET_FILE": str(tmp_path / "secret")})[1]
    assert made.secret == "s4" and "s4" not in repr(made)
    (tmp_path / "empty").touch()
    for name in ("none", "empty"):
        with pytest.raises(SettingsError, match=name):
            read_command(["--name", "a"], {"RELAY_SHARED_SECRET_FILE": str(tmp_path / name)})


def test_where_runs_are_published_that_do_not_say_it() -> None:
    """Row A7."""
    _, made = read_command([], {"HOME": "/"})
    assert made.hub is None
    _, made = read_command([], {"HOME": "/", "HF_REPO": "me/a", "RELAY_HF_REPO": "me/b", "HF_DRY_RUN": "1"})
    assert made.hub is not None
    assert (made.hub.repo, made.hub.every.seconds, made.hub.dry_run) == ("me/b", 4 * 3600.0, True)
    for interval, seconds in (("600", 600.0), ("2h", 7200.0)):
        _, made = read_command([], {"HOME": "/", "HF_REPO": "me/a", "RELAY_HF_SYNC_INTERVAL": interval})
        assert made.hub is not None and made.hub.every.seconds == seconds
    with pytest.raises(SettingsError, match=r"\$RELAY_HF_SYNC_INTERVAL: give it as a duration"):
        read_command([], {"HOME": "/", "HF_REPO": "me/a", "RELAY_HF_SYNC_INTERVAL": "often"})
    with pytest.raises(SettingsError, match=r"\$HF_REPO: give it as owner/name"):
        read_command([], {"HOME": "/", "HF_REPO": "sums"})

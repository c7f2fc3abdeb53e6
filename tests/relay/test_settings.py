"""Settings: where a value comes from, what is refused, and what is never shown."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.settings import SettingsError, add_flags, from_environment, make_parser, read_secret, read_settings, setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int = setting("--count", variable="COUNT", parse=int, default="1", help="How many.")
    words: tuple[str, ...] = setting("--word", parse=tuple, compute=lambda _: (), repeated=True, help="Some words.")
    home: str = setting("--home", compute=lambda environment: environment.get("HOME", "/"), help="Where.")
    secret: str | None = from_environment(read_secret, shown=False)


def settings(*arguments: str, **environment: str) -> Settings:
    parser = make_parser("program", "A program.")
    add_flags(parser, Settings)
    return read_settings(Settings, parser.parse_args(arguments), environment)


def test_a_flag_wins_over_its_variable_over_the_default() -> None:
    assert (settings().count, settings(COUNT="2").count, settings("--count", "3", COUNT="2").count) == (1, 2, 3)


def test_an_empty_variable_counts_as_unset() -> None:
    assert settings(COUNT="").count == 1


def test_a_flag_may_be_repeated_and_a_default_may_depend_on_the_environment() -> None:
    made = settings("--word", "a", "--word", "b", HOME="/home/u")
    assert made.words == ("a", "b") and made.home == "/home/u" and settings().words == ()


@pytest.mark.parametrize(
    ("arguments", "environment", "names"),
    [
        (["--count", "x"], {}, "--count: "),
        ([], {"COUNT": "x"}, r"\$COUNT: "),
        (["--unknown"], {}, "--unknown"),
        (["--count"], {}, "--count"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(arguments: list[str], environment: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names) as refused:
        settings(*arguments, **environment)
    assert "\n" not in str(refused.value)


def test_a_secret_comes_from_a_file_or_a_variable_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden\n")
    made = settings(RELAY_SHARED_SECRET_FILE=str(tmp_path / "secret"), RELAY_SHARED_SECRET="other")
    assert made.secret == "hidden" and "hidden" not in repr(made)
    assert settings(RELAY_SHARED_SECRET="other").secret == "other" and settings().secret is None
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("none", "empty", "binary"):
        with pytest.raises(SettingsError, match=name):
            settings(RELAY_SHARED_SECRET_FILE=str(tmp_path / name))


@pytest.mark.parametrize(
    ("module", "name"), [("agent", "relay-agent"), ("coordinator", "relay-coordinator"), ("relayctl", "relayctl")]
)
def test_every_program_tells_its_version_and_its_flags(module: str, name: str) -> None:
    told = [
        subprocess.run([sys.executable, "-m", module, flag], capture_output=True, text=True, check=True, timeout=60)
        for flag in ("--version", "-h")
    ]
    assert told[0].stdout.split()[0] == name and told[0].stdout.count("\n") == 1
    assert "--version" in told[1].stdout and not told[0].stderr + told[1].stderr

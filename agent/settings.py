"""The agent's settings: a frozen value, read once from the command line and the environment."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from relay.settings import (
    SettingsError,
    add_flags,
    from_environment,
    make_parser,
    read_secret,
    read_settings,
    setting,
)
from runfile import HubSection, parse_duration, parse_size
from runfile.scalars import NAME_PATTERN

DETACH = "detach"


def read_command(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[str, AgentSettings]:
    """Return the command, `run` or `detach`, and the settings; SettingsError when something is wrong."""
    parser = make_parser("relay-agent", "Runs training on this host for a Relay coordinator.")
    parser.add_argument("command", nargs="?", choices=("run", DETACH), default="run", help="[default: run]")
    add_flags(parser, AgentSettings)
    given = parser.parse_args(arguments)
    return given.command, read_settings(AgentSettings, given, environment)


def _rate(text: str) -> int:
    if (rate := parse_size(text.removesuffix("/s"))) < 1:
        raise ValueError("at least a byte in a second, for instance 50MiB/s")
    return rate


def _labels(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, _) in zip(texts, pairs, strict=True):
        if not (key and equals):
            raise ValueError(f"{text!r}: give it as key=value")
    return {key: value for key, _, value in pairs}


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise ValueError("give a whole number, at least 1")
    return int(text)


def _hub(environment: Mapping[str, str]) -> HubSection | None:
    """Return where runs are published whose run file does not say it (row A7)."""
    repo = environment.get("RELAY_HF_REPO") or environment.get("HF_REPO")
    if not repo:
        return None
    every, dry = environment.get("RELAY_HF_SYNC_INTERVAL", "4h"), environment.get("HF_DRY_RUN", "")
    with contextlib.suppress(ValueError):
        every = f"{float(every):g}s"  # a number alone is seconds, as it was
    try:
        return HubSection.model_validate(
            {"repo": repo, "every": every, "dry_run": dry.lower() not in ("", "0", "false", "no")},
            context={"units": True},
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = "RELAY_HF_SYNC_INTERVAL" if wrong["loc"][0] == "every" else "HF_REPO"
        hint = "a duration like 4h" if name == "RELAY_HF_SYNC_INTERVAL" else "owner/name"
        raise SettingsError(f"${name}: give it as {hint}") from error


def _data_dir(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME", "/"), ".local/share/relay/agent")


def _runtime_dir(environment: Mapping[str, str]) -> Path:
    if environment.get("XDG_RUNTIME_DIR"):
        return Path(environment["XDG_RUNTIME_DIR"], "relay")
    return Path(tempfile.gettempdir(), f"relay-{os.getuid()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The agent's settings. Durations in seconds, sizes in bytes."""

    coordinator: str = setting(
        "--coordinator",
        variable="RELAY_COORDINATOR",
        default="127.0.0.1:7070",
        metavar="HOST:PORT",
        help="Where the coordinator listens.",
    )
    name: str = setting(
        "--name",
        variable="RELAY_AGENT_NAME",
        compute=lambda _: socket.gethostname().lower(),
        help="What to call this host; its host name by default.",
    )
    root: Path = setting(
        "--root",
        variable="RELAY_L1_ROOT",
        parse=Path,
        default="/mnt/relay",
        metavar="FOLDER",
        help="Keep run folders here: large, and possibly a network volume.",
    )
    data_dir: Path = setting(
        "--data-dir",
        variable="RELAY_AGENT_DATA",
        parse=Path,
        compute=_data_dir,
        metavar="FOLDER",
        help="Keep the agent's own files and its cache here; ~/.local/share/relay/agent by default.",
    )
    runtime_dir: Path = setting(
        "--runtime-dir",
        variable="RELAY_RUNTIME_DIR",
        parse=Path,
        compute=_runtime_dir,
        metavar="FOLDER",
        help="Keep sockets and the lock here; must be on a local disk.",
    )
    labels: Mapping[str, str] = setting(
        "--label",
        parse=_labels,
        compute=lambda _: {},
        metavar="KEY=VALUE",
        repeated=True,
        help="Label this host; may be given several times.",
    )
    slots: int = setting(
        "--slots", parse=_count, default="1", metavar="N", help="Run this many runs at once on a host without GPUs."
    )
    python: str = setting(
        "--python", compute=lambda _: sys.executable, metavar="PATH", help="Start trainers with this interpreter."
    )
    cache_limit: int = setting(
        "--cache-limit", parse=parse_size, default="20GiB", metavar="SIZE", help="Cache at most this much input."
    )
    transfer_limit: int | None = setting(
        "--transfer-limit",
        variable="RELAY_TRANSFER_LIMIT",
        parse=_rate,
        default=None,
        metavar="SIZE/s",
        help="Limit all uploads and downloads together, for instance to 50MiB/s; no limit by default.",
    )
    leaving_budget: float = setting(
        "--leaving-budget",
        parse=parse_duration,
        default="30s",
        metavar="DURATION",
        help="Give trainers this long to save after SIGTERM.",
    )
    disconnect_limit: float = setting(
        "--disconnect-limit",
        parse=parse_duration,
        default="24h",
        metavar="DURATION",
        help="Train without the coordinator for at most this long.",
    )
    orphan_limit: float = setting(
        "--orphan-limit",
        parse=parse_duration,
        default="1h",
        metavar="DURATION",
        help="Let a trainer continue without an agent for at most this long.",
    )
    secret: str | None = from_environment(read_secret, shown=False)
    hub: HubSection | None = from_environment(_hub)  #: used for runs whose run file has no `hub` section

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise SettingsError(f"--name {self.name!r}: small letters, digits, '.', '_' and '-' only, at most 128")
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise SettingsError(
                f"--coordinator {self.coordinator!r}: give it as host:port, for instance 127.0.0.1:7070"
            )
        if not self.root.is_absolute():
            raise SettingsError(f"--root {self.root}: give it as an absolute path")

    @property
    def resource_name(self) -> str:
        """The agent's resource name in the contract."""
        return f"agents/{self.name}"

    @property
    def lock(self) -> Path:
        """The file that the only agent of this runtime folder has locked; it holds the agent's pid."""
        return self.runtime_dir / "agent.lock"

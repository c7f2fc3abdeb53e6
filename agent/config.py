"""The agent's settings: a frozen value, read once from the command line and the environment."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from runfile import Hub, UnitError, parse_duration, parse_size
from runfile.scalars import NAME


class ConfigError(Exception):
    """A setting is missing or wrong; the message says which and what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Durations in seconds, sizes in bytes."""

    coordinator: str  #: host:port
    name: str
    root: Path  #: run folders; large, and may be a network volume
    data_dir: Path  #: the agent's memory and its cache
    runtime_dir: Path  #: sockets and the lock; must be a local disk
    labels: Mapping[str, str]
    slots: int  #: runs at once on a host without GPUs
    python: str  #: what trainers are started with
    cache_limit: int
    transfer_limit: int | None  #: bytes in a second
    leaving_budget: float
    disconnect_limit: float
    orphan_limit: float
    secret: str | None = field(repr=False)
    hub: Hub | None = None  #: for runs that say nothing of the Hub

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r}: small letters, digits, '.', '_' and '-' only, at most 128")
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise ConfigError(f"--coordinator {self.coordinator!r}: give it as host:port, for instance 127.0.0.1:7070")
        if self.slots < 1:
            raise ConfigError("--slots: at least 1")
        if not self.root.is_absolute():
            raise ConfigError(f"--root {self.root}: give it as an absolute path")

    @property
    def resource_name(self) -> str:
        return f"agents/{self.name}"

    @property
    def lock(self) -> Path:
        """Held by the one agent of this runtime folder; has its pid in it."""
        return self.runtime_dir / "agent.lock"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("relay-agent", description="Runs training on this host for a Relay coordinator.")
    made.add_argument("command", nargs="?", choices=("run", "detach"), default="run")
    made.add_argument("--coordinator", metavar="HOST:PORT", help="$RELAY_COORDINATOR")
    made.add_argument("--name", help="$RELAY_AGENT_NAME; the host's name by default")
    made.add_argument("--root", type=Path, help="run folders; $RELAY_L1_ROOT, /mnt/relay by default")
    made.add_argument("--data-dir", type=Path, help="$RELAY_AGENT_DATA; ~/.local/share/relay/agent by default")
    made.add_argument("--runtime-dir", type=Path, help="sockets; $RELAY_RUNTIME_DIR, on a local disk")
    made.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", dest="labels")
    made.add_argument("--slots", type=int, default=1, help="runs at once on a host without GPUs (1)")
    made.add_argument("--python", default=sys.executable, help="interpreter for trainers")
    made.add_argument("--cache-limit", default="20GiB", help="of fetched input files (20GiB)")
    made.add_argument(
        "--transfer-limit",
        metavar="SIZE/s",
        help="of all uploads and downloads together, for instance 50MiB/s; $RELAY_TRANSFER_LIMIT, none by default",
    )
    made.add_argument("--leaving-budget", default="30s", help="time to save in after SIGTERM (30s)")
    made.add_argument("--disconnect-limit", default="24h", help="train on without the coordinator for at most (24h)")
    made.add_argument("--orphan-limit", default="1h", help="a trainer goes on without an agent for at most (1h)")
    return made


def config(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[str, Config]:
    """The command and the settings; ConfigError when something is wrong. An option wins over the environment."""
    given = parser().parse_args(arguments)
    try:
        return given.command, Config(
            coordinator=given.coordinator or environment.get("RELAY_COORDINATOR", "127.0.0.1:7070"),
            name=given.name or environment.get("RELAY_AGENT_NAME") or socket.gethostname().lower(),
            root=given.root or Path(environment.get("RELAY_L1_ROOT", "/mnt/relay")),
            data_dir=given.data_dir or _data_dir(environment),
            runtime_dir=given.runtime_dir or _runtime_dir(environment),
            labels=dict(_label(text) for text in given.labels),
            slots=given.slots,
            python=given.python,
            cache_limit=parse_size(given.cache_limit),
            transfer_limit=_rate(given.transfer_limit or environment.get("RELAY_TRANSFER_LIMIT", "")),
            leaving_budget=parse_duration(given.leaving_budget),
            disconnect_limit=parse_duration(given.disconnect_limit),
            orphan_limit=parse_duration(given.orphan_limit),
            secret=_secret(environment),
            hub=_hub(environment),
        )
    except UnitError as error:
        raise ConfigError(str(error)) from error


def _rate(text: str) -> int | None:
    if text and (rate := parse_size(text.removesuffix("/s"))) < 1:
        raise ConfigError(f"--transfer-limit {text!r}: at least a byte in a second, for instance 50MiB/s")
    return rate if text else None


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"--label {text!r}: give it as key=value")
    return key, value


def _hub(environment: Mapping[str, str]) -> Hub | None:
    """Where runs are published that do not say it themselves (row A7)."""
    repo = environment.get("RELAY_HF_REPO") or environment.get("HF_REPO")
    if not repo:
        return None
    every, dry = environment.get("RELAY_HF_SYNC_INTERVAL", "4h"), environment.get("HF_DRY_RUN", "")
    with contextlib.suppress(ValueError):
        every = f"{float(every):g}s"  # a number alone is seconds, as it was
    try:
        return Hub.model_validate(
            {"repo": repo, "every": every, "dry_run": dry.lower() not in ("", "0", "false", "no")},
            context={"units": True},
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = "RELAY_HF_SYNC_INTERVAL" if wrong["loc"][0] == "every" else "HF_REPO"
        hint = "a duration like 4h" if name == "RELAY_HF_SYNC_INTERVAL" else "owner/name"
        raise ConfigError(f"${name}: give it as {hint}") from error


def _data_dir(environment: Mapping[str, str]) -> Path:
    home = Path(environment.get("HOME", "/"), ".local/share/relay/agent")
    return Path(environment["RELAY_AGENT_DATA"]) if environment.get("RELAY_AGENT_DATA") else home


def _runtime_dir(environment: Mapping[str, str]) -> Path:
    if environment.get("RELAY_RUNTIME_DIR"):
        return Path(environment["RELAY_RUNTIME_DIR"])
    if environment.get("XDG_RUNTIME_DIR"):
        return Path(environment["XDG_RUNTIME_DIR"], "relay")
    return Path(tempfile.gettempdir(), f"relay-{os.getuid()}")


def _secret(environment: Mapping[str, str]) -> str | None:
    """From the environment or a file, never from the command line, which every user of the host can read."""
    if environment.get("RELAY_SHARED_SECRET_FILE"):
        path = Path(environment["RELAY_SHARED_SECRET_FILE"])
        try:
            secret = path.read_text().strip()
        except OSError as error:
            raise ConfigError(f"$RELAY_SHARED_SECRET_FILE {path}: {error.strerror}") from error
        if not secret:
            raise ConfigError(f"$RELAY_SHARED_SECRET_FILE {path}: it is empty")
        return secret
    return environment.get("RELAY_SHARED_SECRET") or None

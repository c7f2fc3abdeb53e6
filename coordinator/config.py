"""The coordinator's settings: frozen values, read once from the command line and the environment."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from coordinator.artifacts.garbage_collection import CollectionSchedule
from relay.settings import SECRET, SECRET_FILE, SettingsError, from_environment, read_secret, setting
from relay.timing import PROFILES, LeaseTiming
from runfile import parse_duration, parse_size

GIB = 1024**3
STORE_SCHEMES = ("s3", "gs", "az")


def _timing(name: str) -> LeaseTiming:
    if name not in PROFILES:
        raise ValueError(f"give one of {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def _collection_schedule(grace: str) -> CollectionSchedule:
    seconds = parse_duration(grace)
    return CollectionSchedule(every=min(CollectionSchedule().every, seconds), grace=seconds)


def _limit(size: str) -> int:
    if (limit := parse_size(size)) <= 0:
        raise ValueError("must be positive")
    return limit


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    """Which database the coordinator uses: what every one of its commands needs."""

    database_url: str | None = setting(
        "--database-url",
        variable="RELAY_DATABASE_URL",
        default=None,
        metavar="URL",
        help="Use this database, postgresql://…; an embedded server by default.",
    )
    data_dir: Path = setting(
        "--data-dir",
        variable="RELAY_DATA_DIR",
        parse=Path,
        default="~/.local/share/relay/coordinator",
        metavar="FOLDER",
        help="Keep the coordinator's own files here.",
    )

    def __post_init__(self) -> None:
        if self.database_url is not None:
            check_database_url(self.database_url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DatabaseConfig):
    """All settings of `relay-coordinator serve`."""

    listen: str = setting(
        "--listen",
        variable="RELAY_LISTEN",
        default="127.0.0.1:7070",
        metavar="HOST:PORT",
        help="Listen here; port 0 takes a free one.",
    )
    artifact_dir: Path | None = setting(
        "--artifact-dir",
        variable="RELAY_ARTIFACT_DIR",
        parse=Path,
        default=None,
        metavar="FOLDER",
        help="Keep artifacts here, shared by all replicas; in the data folder by default.",
    )
    artifact_store: str | None = setting(
        "--artifact-store",
        variable="RELAY_ARTIFACT_STORE",
        default=None,
        metavar="URL",
        help="Keep artifacts in s3://BUCKET/PREFIX instead; then the folder only holds what is on its way.",
    )
    artifact_limit: int = setting(
        "--artifact-limit",
        variable="RELAY_ARTIFACT_LIMIT",
        parse=_limit,
        default="200GiB",
        metavar="SIZE",
        help="Keep at most this much, all artifacts together.",
    )
    collection: CollectionSchedule = setting(
        "--artifact-grace",
        variable="RELAY_ARTIFACT_GRACE",
        parse=_collection_schedule,
        default="24h",
        metavar="DURATION",
        help="Keep artifacts that nothing names for this long.",
    )
    timing: LeaseTiming = setting(
        "--timing",
        variable="RELAY_TIMING",
        parse=_timing,
        default="default",
        metavar="PROFILE",
        help="Time leases like this: default, wan or test.",
    )
    secret: str | None = from_environment(read_secret, shown=False)

    def __post_init__(self) -> None:
        DatabaseConfig.__post_init__(self)
        host, port = self.address
        if not (port.isdecimal() and int(port) < 2**16):
            raise SettingsError(f"--listen {self.listen}: give host:port, for example 127.0.0.1:7070")
        if not is_loopback(host) and not self.secret:
            raise SettingsError(
                f"--listen {self.listen} is reachable from other machines: set {SECRET} (or {SECRET_FILE})"
            )
        if self.artifact_store is not None:
            check_store_url(self.artifact_store)

    @property
    def address(self) -> tuple[str, str]:
        """Host (without brackets) and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), port

    @property
    def artifacts(self) -> Path:
        return (self.artifact_dir or self.data_dir / "artifacts").expanduser()


def check_database_url(url: str) -> None:
    """SettingsError for what names no database. What is wrong is not repeated: it may hold a password."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise SettingsError(
            "--database-url (or RELAY_DATABASE_URL): give postgresql://user:password@host:port/database"
        )


def check_store_url(url: str) -> None:
    """SettingsError for what names no bucket, or holds a secret; that is not repeated."""
    parts = urlsplit(url)
    if parts.scheme not in STORE_SCHEMES or not parts.netloc or "@" in parts.netloc or parts.query:
        raise SettingsError(
            "--artifact-store: give s3://BUCKET/PREFIX (gs:// and az:// too); credentials come from the environment"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

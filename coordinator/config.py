"""What the coordinator was told when it was started: read once, checked where it meets, passed by argument."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from coordinator.artifacts.garbage_collection import Pace
from relay.timing import DEFAULT, LeaseTiming

SECRET = "RELAY_SHARED_SECRET"
SECRET_FILE = "RELAY_SHARED_SECRET_FILE"
DEFAULT_DATA_DIR = Path("~/.local/share/relay/coordinator")
GIB = 1024**3
STORE_SCHEMES = ("s3", "gs", "az")


class ConfigError(ValueError):
    """The coordinator cannot be started like this; the message says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set."""

    listen: str = "127.0.0.1:7070"  #: host:port; port 0 takes a free one
    data_dir: Path = DEFAULT_DATA_DIR
    database_url: str | None = None  #: None: the embedded server, below `data_dir`
    artifact_dir: Path | None = None  #: None: below `data_dir`; replicas must share it
    artifact_store: str | None = None  #: a bucket's URL instead; then `artifact_dir` only holds what is on its way
    artifact_limit: int = 200 * GIB  #: bytes, all blobs together
    collecting: Pace = field(default_factory=Pace)  #: what nothing names in the artifact store
    timing: LeaseTiming = field(default=DEFAULT)
    secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        host, port = self.address
        if not (port.isdecimal() and int(port) < 2**16):
            raise ConfigError(f"--listen {self.listen}: give host:port, for example 127.0.0.1:7070")
        if not is_loopback(host) and not self.secret:
            raise ConfigError(
                f"--listen {self.listen} is reachable from other machines: set {SECRET} (or {SECRET_FILE})"
            )
        if self.database_url is not None:
            check_database_url(self.database_url)
        if self.artifact_store is not None:
            check_store_url(self.artifact_store)
        if self.artifact_limit <= 0:
            raise ConfigError("--artifact-limit must be positive")

    @property
    def address(self) -> tuple[str, str]:
        """Host (without brackets) and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), port

    @property
    def artifacts(self) -> Path:
        return (self.artifact_dir or self.data_dir / "artifacts").expanduser()


def check_database_url(url: str) -> None:
    """ConfigError for what names no database. What is wrong is not repeated: it may hold a password."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError("--database-url (or RELAY_DATABASE_URL): give postgresql://user:password@host:port/database")


def check_store_url(url: str) -> None:
    """ConfigError for what names no bucket, or holds a secret; that is not repeated."""
    parts = urlsplit(url)
    if parts.scheme not in STORE_SCHEMES or not parts.netloc or "@" in parts.netloc or parts.query:
        raise ConfigError(
            "--artifact-store: give s3://BUCKET/PREFIX (gs:// and az:// too); credentials come from the environment"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_secret(environ: Mapping[str, str]) -> str | None:
    """The shared secret, from the environment or the file that it names; never from a command line."""
    if path := environ.get(SECRET_FILE):
        try:
            return Path(path).read_text().strip() or None
        except OSError as error:
            raise ConfigError(f"{SECRET_FILE}: {error}") from error
    return environ.get(SECRET) or None
